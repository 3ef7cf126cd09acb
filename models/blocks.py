"""Networks that are a sequence of blocks: cut after a block, partly frozen, any head.

Training block by block uses all three: Marquez, Hare and Niranjan, "Deep Cascade
Learning", IEEE TNNLS 29(11), 2018.
"""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import Layers, Network, as_input, as_logits, global_mean

Block = Callable[[jax.Array, Layers], jax.Array]


class BlockNetwork(Network, kw_only=True):
    """A sequence of blocks, and a head.

    Attributes:
      cut: How many blocks it has; None for all of them.
      frozen: How many blocks are frozen. They normalise with their running
        statistics, and no gradient passes into them.
      dropout_rate: The share of units that the "mlp" and "dense" heads drop.
      normalization: "batch", "layer" (of the channels) or "none".
      kernel_init: "pytorch" or "he"; see :class:`models.layers.Layers`.
    """

    heads: ClassVar[tuple[str, ...]] = ("linear", "dense", "conv")

    cut: int | None = None
    frozen: int = 0
    dropout_rate: float = 0.5
    normalization: str = "batch"
    kernel_init: str = "pytorch"

    # Not wrapped by Flax: the modules that it makes are those of `__call__`.
    @nn.nowrap
    def blocks(self) -> dict[str, Block]:
        """All of its blocks by name, in order."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to (batch, num_classes)."""
        x = as_input(images, self.dtype)
        # Blocks that are cut off are never called, and so have no variables.
        blocks = list(self.blocks().values())[: self.cut]
        for number, block in enumerate(blocks, 1):
            is_training = train and number > self.frozen
            x = block(x, self._layers(is_training))
            if number == self.frozen:
                x = jax.lax.stop_gradient(x)
        layers = self._layers(train)
        if self.head == "linear":
            logits = layers.dense(global_mean(x), "head", self.num_classes)
        else:
            kind = {"mlp": MlpHead, "dense": DenseHead, "conv": ConvHead}[self.head]
            sizes = self.num_classes, self.width, self.dropout_rate
            logits = kind(*sizes, layers, name="head")(x)
        return as_logits(logits)

    @nn.nowrap
    def _layers(self, train: bool) -> Layers:
        choices = self.normalization, self.kernel_init
        return Layers(train, self.dtype, self.axis_name, *choices)


class Head(nn.Module):
    """A head: the layers after the last block.

    Attributes:
      num_classes: The number of logits.
      width: The network's; the sizes of hidden layers are multiples of it.
      dropout_rate: The share of hidden units dropped in training.
      layers: Applies the network's layers.
    """

    num_classes: int
    width: int
    dropout_rate: float
    layers: Layers


class MlpHead(Head):
    """VGG's classifier: mean, two hidden layers with dropout after each, logits.

    The hidden layers have 4096 units at the usual width of 64.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, num_classes)."""
        x = global_mean(x)
        for name in ("hidden1", "hidden2"):
            x = nn.relu(self.layers.dense(x, name, 64 * self.width))
            x = self.layers.dropout(x, self.dropout_rate)
        return self.layers.dense(x, "output", self.num_classes)


class DenseHead(Head):
    """The head of deep cascade learning: two hidden layers, with dropout before each.

    The hidden layers have 512 and 256 units at the usual width of 64.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, num_classes)."""
        x = x.reshape(x.shape[0], -1)  # all pixels, which fixes the images' size
        for name, factor in (("hidden1", 8), ("hidden2", 4)):
            x = self.layers.dropout(x, self.dropout_rate)
            x = nn.relu(self.layers.dense(x, name, factor * self.width))
        return self.layers.dense(x, "output", self.num_classes)


class ConvHead(Head):
    """The head of greedy layer-wise learning with one hidden layer (its k = 2).

    A 3x3 convolution, averages over 2x2 regions, and a linear layer, as in the
    authors' program.

    Belilovsky, Eickenberg and Oyallon, "Greedy Layerwise Learning Can Scale to
    ImageNet", https://arxiv.org/abs/1812.11446, ICML 2019.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, num_classes)."""
        x = self.layers.conv(x, "conv", x.shape[-1], 3)
        x = nn.relu(self.layers.norm(x, "norm1"))
        x = self.layers.norm(_means(x), "norm2")
        return self.layers.dense(x.reshape(x.shape[0], -1), "output", self.num_classes)


def _means(x: jax.Array) -> jax.Array:
    """Means over 2x2 regions of (batch, height, width, channels); (batch, 2, 2, ...).

    An odd side is cut in two unequal parts; a side of 1 remains.
    """
    for axis in (1, 2):
        parts = jnp.array_split(x, min(2, x.shape[axis]), axis)
        x = jnp.concatenate([p.mean(axis, keepdims=True) for p in parts], axis)
    return x
