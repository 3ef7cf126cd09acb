"""Keeps pytest from importing, in search of doctests, a script that needs torch."""

collect_ignore = ["make_vectors.py"]
