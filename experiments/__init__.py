"""The papers' tables and figures, declared; statistics; reports.

python -m experiments list
python -m experiments run plp --quick
python -m experiments report plp
"""
