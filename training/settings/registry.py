"""What a run can choose by name, and the function behind each name.

Nothing here imports JAX, so that flags are checked without it. To add a method or a
data set, write its function in a file of its own and add an entry.
"""

import importlib
from typing import Any

# Name: function of the base optimizer, the configuration and the steps in an epoch that
# returns the complete optimizer (see training.settings.methods).
METHODS = {
    "sgd": "training.settings.methods:none",
    "plp": "training.settings.methods:plp",
    "lookahead": "training.settings.methods:lookahead",
    "average": "training.settings.methods:average",
    "adaptive-window": "training.settings.methods:adaptive_window",
    "ema-nesterov": "training.settings.methods:ema_nesterov",
    "outer-nesterov": "training.settings.methods:outer_nesterov",
    "tail-average": "training.settings.methods:tail_average",
    "amplify": "training.settings.methods:amplify",
    "amplify+plp": "training.settings.methods:amplify_and_plp",
}

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
