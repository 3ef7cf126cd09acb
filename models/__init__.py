"""Flax networks for image classification.

``NETWORKS`` lists them without importing JAX; ``create`` makes one.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models._create import create as create
    from models.layers import Network as Network

# Name: the module whose VARIANTS defines it.
NETWORKS = {
    "vgg16": "models.vgg",
    "vgg19": "models.vgg",
    "vgg29": "models.vgg",
    "resnet18": "models.resnet",
    "resnet34": "models.resnet",
    "resnet50": "models.resnet",
    "resnet101": "models.resnet",
    "googlenet": "models.googlenet",
    "vit-tiny": "models.vit",
    "vit-small": "models.vit",
    "vit-base": "models.vit",
    "efficientnet-b0": "models.efficientnet",
    "tiny": "models.tiny",
    "plain": "models.plain",
}

# Those that can be cut after a block and partly frozen (``models.blocks``).
IN_BLOCKS = tuple(
    name
    for name, module in NETWORKS.items()
    if module in ("models.vgg", "models.resnet", "models.tiny")
)

# Those with an attribute ``dropout_rate``.
WITH_DROPOUT = tuple(
    name
    for name, module in NETWORKS.items()
    if module in ("models.vgg", "models.googlenet", "models.vit", "models.efficientnet")
)

# Those with a stem for large images, next to the one for small ones.
WITH_IMAGENET_STEM = tuple(
    name
    for name, module in NETWORKS.items()
    if module
    in ("models.resnet", "models.googlenet", "models.vit", "models.efficientnet")
)


def __getattr__(name: str) -> Any:
    """Imports the networks, and with them JAX and Flax, when they are first used."""
    if name == "create":
        from models._create import create

        return create
    if name == "Network":
        from models.layers import Network

        return Network
    raise AttributeError(f"module 'models' has no attribute {name!r}")
