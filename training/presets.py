"""Published training protocols, as fields of a configuration."""

from typing import Any

_CIFAR100 = {"dataset": "cifar100", "width": 64, "batch_size": 128, "momentum": 0.9}

# Basodi et al., arXiv 2305.18445, train on the whole training set and count the last
# epoch. They do not publish the factor (2 in the named strategies), batch size,
# momentum, weight decay or augmentation.
_AMPLIFY = {
    **_CIFAR100,
    "method": "amplify",
    "epochs": 150,
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "validation_fraction": 0.0,
    "augment": True,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Ying et al., arXiv 2310.10958. Two readings of its period exist; 4, the default,
    # is the text's.
    "plp-paper": {
        **_CIFAR100,
        "epochs": 100,
        "warmup_epochs": 1.0,
        "schedule": "cyclic",
        "learning_rate": 0.001,
        "max_learning_rate": 0.002,
        "cycle_steps": 2000,
        "optimizer": "sgd",
        "weight_decay": 1e-4,
        "validation_fraction": 0.2,
        "augment": False,
    },
    "amplify-paper": {**_AMPLIFY, "strategy": "paper"},
    # Higher thresholds do better for the deeper networks, by the paper's text.
    "amplify-paper-deep": {
        **_AMPLIFY,
        "strategy": "paper-deep",
        "model": "resnet50",
        "amplify_threshold": 2.0,
    },
}
