"""Flax networks for image classification.

``NETWORKS`` lists them without importing JAX; ``create`` makes one.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from models._create import create as create
    from models.layers import Network as Network


class Family(NamedTuple):
    """The networks of a module, and their options.

    Attributes:
      module: The module whose ``VARIANTS`` defines them.
      has_blocks: Whether they can be cut after a block and partly frozen; see
        ``models.blocks``.
      has_dropout: Whether they have the attribute ``dropout_rate``.
      has_mlp_head: Whether they have the head "mlp".
      has_imagenet_stem: Whether they have a stem for large images, next to the one for
        small images.
    """

    module: str
    has_blocks: bool = False
    has_dropout: bool = False
    has_mlp_head: bool = False
    has_imagenet_stem: bool = False


_RESNET = Family("models.resnet", has_blocks=True, has_imagenet_stem=True)
_VGG = Family("models.vgg", has_blocks=True, has_dropout=True, has_mlp_head=True)
_VIT = Family("models.vit", has_dropout=True, has_imagenet_stem=True)

NETWORKS = {
    **dict.fromkeys(("vgg16", "vgg19", "vgg29"), _VGG),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), _RESNET),
    "googlenet": Family("models.googlenet", has_dropout=True, has_imagenet_stem=True),
    **dict.fromkeys(("vit-tiny", "vit-small", "vit-base"), _VIT),
    "efficientnet-b0": Family(
        "models.efficientnet", has_dropout=True, has_imagenet_stem=True
    ),
    "tiny": Family("models.tiny", has_blocks=True),
    "plain": Family("models.plain"),
}


def __getattr__(name: str) -> Any:
    """Imports the networks, and with them JAX and Flax, when they are first used."""
    if name == "create":
        from models._create import create

        return create
    if name == "Network":
        from models.layers import Network

        return Network
    raise AttributeError(f"module 'models' has no attribute {name!r}")
