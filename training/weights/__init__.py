"""Initial variables that come from files."""
