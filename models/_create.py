"""Creates a network by its name."""

import importlib
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from models import NETWORKS
from models.layers import Network


def create(
    name: str,
    num_classes: int = 100,
    *,
    stem: str = "cifar",
    head: str | None = None,
    width: int = 64,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
) -> Network:
    """Returns a network by its name.

    The module maps float images of shape (batch, height, width, channels) to logits
    of shape (batch, num_classes), in float32 or wider. Any side from 1 pixel up
    is accepted: a pooling or stride leaves a side of 1 unchanged. Its variables are
    the collections ``params`` and ``batch_stats``; "plain" and ViT have no
    ``batch_stats``. In training, ``batch_stats`` must be mutable, and networks with
    dropout (VGG's MLP head at 0.5, GoogLeNet at 0.4, EfficientNet at 0.2, ViT if it is
    set) need the "dropout" random stream. ``network.clone(dropout_rate=0.0)`` turns it
    off; EfficientNet's stochastic depth has a ``stochastic_depth_rate`` too. In the
    same way VGG, ResNet and "tiny" do without normalisation, or start from He's
    initialisation: ``network.clone(normalization="none", kernel_init="he")`` (see
    ``models.blocks.BlockNetwork``).

    Networks start from PyTorch's default initialisation of convolutions and linear
    layers; ViT's class token starts at 0, its positions normal with deviation 0.02.
    Batch normalisation has PyTorch's momentum 0.1 and epsilon 1e-5; its running
    variances are those of Flax, which average the biased variance of a batch of n
    values, (n - 1)/n times PyTorch's.

    Args:
      name: One of ``models.NETWORKS``.
      num_classes: The number of logits, at least 1.
      stem: How the network begins: "cifar" for small images, or, for ResNet,
        GoogLeNet, ViT and EfficientNet, "imagenet", which shrinks the image
        fourfold (ResNet), eightfold (GoogLeNet) or twofold (EfficientNet) before
        the first stage. ViT's patches have 4 and 16 pixels. Its positions fix the
        size of the images.
      head: How it ends: "linear"; for VGG also "mlp", two hidden layers of 64 * width
        with dropout; for networks of blocks also "dense" and "conv" (see
        ``models.blocks``). None is the network's default: "mlp" for VGG.
      width: Channels of the first stage, at least 1; the papers' networks have 64.
        All channel counts scale with it. GoogLeNet and EfficientNet round (see
        ``GoogLeNet``, ``EfficientNet``); ViT has 3, 6 or 12 (tiny, small, base) times
        as many, which are the channels of a head of attention.
      dtype: The floating type of the computation. Parameters and batch statistics
        are float32, or float64 if this is.
      axis_name: The axis of a surrounding ``pmap`` or ``shard_map`` over which training
        averages the batch statistics. Not needed by ``init`` or by evaluation.

    Returns:
      A ``flax.linen.Module``, called as ``apply(variables, images, train=...)``.

    Raises:
      ValueError: For an unknown name, a stem or head the network does not have, a
        num_classes or width that is not a positive integer, or a dtype that is
        not a floating one. Calling the network raises it for images of another
        rank, or of integers.

    Examples:
      >>> import jax
      >>> import models
      >>> network = models.create("tiny", num_classes=10, width=4)
      >>> images = jax.numpy.ones((2, 8, 8, 1))
      >>> variables = network.init(jax.random.key(0), images, train=False)
      >>> variables["params"]["stage1"]["conv"]["kernel"].shape
      (3, 3, 1, 4)
      >>> network.apply(variables, images, train=False).shape
      (2, 10)
      >>> logits, updates = network.apply(
      ...     variables, images, train=True, mutable=["batch_stats"]
      ... )

    References:
      VGG: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale
      Image Recognition", https://arxiv.org/abs/1409.1556, 2014.

      ResNet: He et al., "Deep Residual Learning for Image Recognition",
      https://arxiv.org/abs/1512.03385, 2015.

      GoogLeNet: Szegedy et al., "Going Deeper with Convolutions",
      https://arxiv.org/abs/1409.4842, 2014.

      ViT: Dosovitskiy et al., "An Image is Worth 16x16 Words",
      https://arxiv.org/abs/2010.11929, 2020.

      EfficientNet: Tan and Le, "EfficientNet: Rethinking Model Scaling for
      Convolutional Neural Networks", https://arxiv.org/abs/1905.11946, 2019.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(NETWORKS)}")
    # Only the module of this network is imported.
    variants: dict[str, tuple[type[Network], dict[str, Any]]]
    variants = importlib.import_module(NETWORKS[name].module).VARIANTS
    kind, options = variants[name]
    if stem not in kind.stems:
        raise ValueError(f"{name} has no stem {stem!r}; it has {kind.stems}")
    head = kind.heads[0] if head is None else head
    if head not in kind.heads:
        raise ValueError(f"{name} has no head {head!r}; it has {kind.heads}")
    for option, value in (("num_classes", num_classes), ("width", width)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{option} must be a positive integer, got {value!r}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating type, got {dtype!r}")
    return kind(
        num_classes=num_classes,
        stem=stem,
        head=head,
        width=width,
        dtype=dtype,
        axis_name=axis_name,
        **options,
    )
