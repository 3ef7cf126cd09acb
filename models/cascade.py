"""A stage of a cascade: frozen blocks, the blocks that are trained, and a new head.

Marquez, Hare and Niranjan, "Deep Cascade Learning", IEEE TNNLS 29(11), 2018.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import Layers, Network, as_logits

HEADS = ("dense", "conv")


class StageNetwork(nn.Module):
    """The blocks of a network up to one of them, and a head.

    Its variables have the names that they have in the network, of which it has only
    those of the blocks up to `stop`; those of its head are under `head`.

    The blocks before `start` are frozen: they always use their running statistics, and
    no gradient passes into them.

    Attributes:
        network: the network, which has blocks.
        start: the index of the first block that is trained.
        stop: the index after the last one.
        head: "dense" or "conv".
        dropout_rate: of the dense head.
        cached: whether it is called with what the frozen blocks make of images.
    """

    network: Network
    start: int
    stop: int
    head: str
    dropout_rate: float = 0.5
    cached: bool = False

    def setup(self) -> None:
        """Gives its variables the names that they have in the network."""
        nn.share_scope(self, self.network)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to (batch, num_classes)."""
        network = self.network
        x = images if self.cached else self.frozen(images)
        x = network(x, train=train, start=self.start, stop=self.stop)
        layers = Layers(train, network.dtype, network.axis_name)
        classes, width, rate = network.num_classes, network.width, self.dropout_rate
        if self.head == "conv":
            return as_logits(ConvHead(classes, layers, name="head")(x))
        return as_logits(DenseHead(classes, width, rate, layers, name="head")(x))

    def frozen(self, images: jax.Array) -> jax.Array:
        """What the frozen blocks make of images."""
        x = self.network(images, train=False, stop=self.start)
        return jax.lax.stop_gradient(x)


class DenseHead(nn.Module):
    """The head of deep cascade learning: two hidden layers, with dropout before each.

    Attributes:
        width: of the network. The hidden layers have 8 and 4 times as many units: 512
            and 256 for the usual width of 64.
    """

    num_classes: int
    width: int
    dropout_rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, num_classes)."""
        x = x.reshape(x.shape[0], -1)
        for name, factor in (("hidden1", 8), ("hidden2", 4)):
            x = self.layers.dropout(x, self.dropout_rate)
            x = nn.relu(self.layers.dense(x, name, factor * self.width))
        return self.layers.dense(x, "output", self.num_classes)


class ConvHead(nn.Module):
    """The head of greedy layer-wise learning with one hidden layer (its k = 2).

    A 3x3 convolution, averages over 2x2 regions, and a linear layer, as in the
    authors' program.

    Belilovsky, Eickenberg and Oyallon, "Greedy Layerwise Learning Can Scale to
    ImageNet", https://arxiv.org/abs/1812.11446, ICML 2019.
    """

    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, num_classes)."""
        x = self.layers.conv(x, "conv", x.shape[-1], 3)
        x = nn.relu(self.layers.norm(x, "norm1"))
        x = self.layers.norm(_means(x), "norm2")
        return self.layers.dense(x.reshape(x.shape[0], -1), "output", self.num_classes)


def _means(x: jax.Array) -> jax.Array:
    """Means over 2x2 regions of (batch, height, width, channels); (batch, 2, 2, ...).

    A side that is odd is cut in two unequal parts; a side of 1 remains.
    """
    for axis in (1, 2):
        parts = jnp.array_split(x, min(2, x.shape[axis]), axis)
        x = jnp.concatenate([p.mean(axis, keepdims=True) for p in parts], axis)
    return x
