"""A run under way: its work directory, checkpoints, screen, pictures and signals."""
