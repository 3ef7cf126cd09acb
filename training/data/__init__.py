"""Image classification sets as NumPy arrays, and what a step does to a batch."""

from training.data._images import augment, normalize
from training.data._load import NAMES, load
from training.data._split import stratified_split
from training.data._types import Dataset, Examples

__all__ = [
    "NAMES",
    "Dataset",
    "Examples",
    "augment",
    "load",
    "normalize",
    "stratified_split",
]
