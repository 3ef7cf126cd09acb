"""The papers' tables and figures as studies: declared, run, compared, reported.

python -m experiments list
python -m experiments run plp --quick
python -m experiments report runs/experiments/quick/plp
"""
