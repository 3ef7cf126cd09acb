"""Published training protocols, as fields of a configuration.

docs/protocols.md has their sources, and what is published, assumed or different.
"""

from typing import Any

# The published protocols evaluate with the running statistics of training.
_PUBLISHED = {"average": "none"}
_CIFAR100 = {
    **_PUBLISHED,
    "dataset": "cifar100",
    "width": 64,
    "batch_size": 128,
    "momentum": 0.9,
}

_AMPLIFY = {
    **_CIFAR100,
    "method": "amplify",
    "epochs": 150,
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "validation_fraction": 0.0,
    "augment": True,
}

# The review's three techniques, all at once.
_TECHNIQUES = {"precision": "bfloat16", "input": "host"}
_ACCELERATE = {
    **_PUBLISHED,
    "dataset": "cifar100",
    "width": 64,
    "method": "none",
    "validation_fraction": 0.0,
    "augment": True,
}
_ACCELERATED: dict[str, dict[str, Any]] = {
    "accelerate-resnet50": {
        "model": "resnet50",
        "epochs": 30,
        "batch_size": 128,
        "batches_per_step": 2,
        "optimizer": "adam",
        "schedule": "onecycle",
        "learning_rate": 1e-3,
        "weight_decay": 1e-3,
        "clip_value": 0.01,
    },
    "accelerate-vit": {
        "model": "vit-small",
        "epochs": 15,
        "batch_size": 70,
        "batches_per_step": 20,
        "optimizer": "adamw",
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "learning_rate": 3e-5,
        "weight_decay": 0.01,
    },
    "accelerate-efficientnet": {
        "model": "efficientnet-b0",
        "dropout": 0.2,
        "epochs": 20,
        "batch_size": 96,
        "batches_per_step": 2,
        "optimizer": "sgd",
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-3,
    },
}
# The common recipe of CIFAR-100; for ViT that of DeiT (arXiv 2012.12877) without its
# augmentations and distillation.
_SCRATCH = {
    "dataset": "cifar100",
    "width": 64,
    "method": "none",
    "augment": True,
    "batch_size": 128,
    "label_smoothing": 0.1,
    "schedule": "cosine",
}

PRESETS: dict[str, dict[str, Any]] = {
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
    "amplify-paper-deep": {
        **_AMPLIFY,
        "strategy": "paper-deep",
        "model": "resnet50",
        "amplify_threshold": 2.0,
    },
    "cascade-paper": {
        **_PUBLISHED,
        "dataset": "cifar10",
        "model": "vgg16",
        "head": "linear",
        "norm": "none",
        "width": 64,
        "method": "none",
        "cascade": "dense",
        "cascade_epochs": 20,  # 10 + 10 l, from l = 1
        "cascade_extra_epochs": 10,
        "batch_size": 64,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "schedule": "plateau",
        "plateau_patience": 10,
        "plateau_window": 5,
        "plateau_drops": 4,
        "stop_accuracy": 0.99,
        "warmup_epochs": 0.0,
        "validation_fraction": 0.1,
    },
    **{
        name + form: {**_ACCELERATE, **fields, **techniques}
        for name, fields in _ACCELERATED.items()
        for form, techniques in (("", _TECHNIQUES), ("-plain", {"batches_per_step": 1}))
    },
    "scratch-resnet50": {
        **_SCRATCH,
        "model": "resnet50",
        "epochs": 200,
        "optimizer": "nesterov",
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
    },
    "scratch-vit": {
        **_SCRATCH,
        "model": "vit-tiny",
        "epochs": 200,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "warmup_epochs": 10.0,
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "dropout": 0.1,
    },
    "scratch-efficientnet": {
        **_SCRATCH,
        "model": "efficientnet-b0",
        "epochs": 200,
        "optimizer": "nesterov",
        "learning_rate": 0.05,
        "warmup_epochs": 5.0,
        "weight_decay": 5e-4,
        "average": "ema",
        "average_decay": 0.999,
    },
}

# The differences on another data set than the preset's.
_ON = {
    ("accelerate-vit", "cifar10"): {
        "epochs": 10,
        "learning_rate": 2e-5,
        "batches_per_step": 15,
    },
    ("accelerate-vit-plain", "cifar10"): {"epochs": 10, "learning_rate": 2e-5},
}


def preset(name: str, dataset: str | None = None) -> dict[str, Any]:
    """The fields of a preset on a data set; None for the preset's own."""
    on = _ON.get((name, dataset or ""), {})
    return {**PRESETS[name], **on}
