"""Image-classification sets as NumPy arrays.

What a step does to a batch of them is in :mod:`training.data.pixels`, which needs JAX.
"""

from training.data.dataset import Dataset, Examples, Source
from training.data.loading import load
from training.data.split import stratified_split

__all__ = ["Dataset", "Examples", "Source", "load", "stratified_split"]
