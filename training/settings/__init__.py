"""What a run can choose: flags, presets, methods, optimizers and schedules."""
