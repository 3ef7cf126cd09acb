"""What a work directory may hold, by name."""

import enum
from pathlib import Path


class File(enum.StrEnum):
    """A file or a folder of a run."""

    CONFIG = "config.json"
    DATASET = "dataset.json"
    METRICS = "metrics.jsonl"
    RESULT = "result.json"
    BEST = "best.msgpack"
    AVERAGE = "average.msgpack"
    CHECKPOINTS = "checkpoints"
    # With --block-means: the mean parameters of each block of epochs, and what
    # `python -m training merge` makes of them.
    MEANS = "means"
    MERGED = "merged.msgpack"
    STAGES = "stages"  # of a cascade: the work directories of its stages
    CURVES = "curves.png"
    CONFUSION = "confusion.png"
    # Only in runs that amplify: which layers when, and a table for each analysis.
    AMPLIFICATION = "amplification.png"
    LAYERS = "layers.txt"
    MONITOR = "layers.png"  # with --monitor-layers: signal and noise by layer and epoch
    TENSORBOARD = "tensorboard"
    PROFILE = "profile"


def mean_path(workdir: Path, epoch: int) -> Path:
    """The file of the mean parameters of the block that ends with an epoch."""
    return workdir / File.MEANS / f"epoch-{epoch:05d}.msgpack"
