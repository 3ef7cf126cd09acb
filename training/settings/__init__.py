"""The choices of a run: flags, presets, methods, optimizers and schedules."""
