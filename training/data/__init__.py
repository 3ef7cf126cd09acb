"""Image-classification sets as NumPy arrays, and what a step does to a batch."""

from typing import Any

from training.data.dataset import Dataset, Examples, Source
from training.data.loading import load
from training.data.split import stratified_split

__all__ = [
    "Dataset",
    "Examples",
    "Source",
    "augment",
    "load",
    "normalize",
    "stratified_split",
]


def __getattr__(name: str) -> Any:
    # Reading a set does not need JAX, which takes a second to import; these two do.
    if name in ("augment", "normalize"):
        from training.data import pixels

        return getattr(pixels, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
