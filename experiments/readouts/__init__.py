"""Averages of a constant-rate run next to runs whose rate decays."""
