"""Named data sets, and the function that reads each."""

import importlib
from typing import Any

# Name: function of the data directory that returns a training.data.Source.
DATASETS = {
    "digits": "training.data.digits:read",
    "cifar10": "training.data.cifar:read_cifar10",
    "cifar100": "training.data.cifar:read_cifar100",
}


def load(entry: str) -> Any:
    """Imports the function that ``module:function`` names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
