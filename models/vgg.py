"""VGG: stages of 3x3 convolutions with a max pooling after each.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", arXiv 1409.1556, 2014; here with batch normalisation, which is younger.
"""

import flax.linen as nn
import jax

from models.layers import (
    Layers,
    Network,
    as_input,
    as_logits,
    global_mean,
    max_pool,
    within,
)


class Stage(nn.Module):
    """Convolutions, each with a bias, a normalisation and a relu.

    Attributes:
        part: the indices of its convolutions that are run.
    """

    part: range
    features: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (..., features)."""
        for i in self.part:
            x = self.layers.conv(x, f"conv{i + 1}", self.features, 3, bias=True)
            x = nn.relu(self.layers.norm(x, f"norm{i + 1}"))
        return x


class MlpHead(nn.Module):
    """The paper's classifier: two hidden layers with dropout, and the logits."""

    num_classes: int
    hidden: int
    dropout_rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, channels) to (batch, num_classes)."""
        for name in ("hidden1", "hidden2"):
            x = nn.relu(self.layers.dense(x, name, self.hidden))
            x = self.layers.dropout(x, self.dropout_rate)
        return self.layers.dense(x, "output", self.num_classes)


class VGG(Network):
    """A VGG network: five stages, mean, and an MLP or a linear head.

    Features are averaged to 1x1 before the head, where the paper has 7x7 of them. A
    block is a convolution with its normalisation and relu, and the pooling after it.

    Attributes:
        depths: the number of convolutions in each stage.
        dropout_rate: the share of the MLP head's hidden units dropped in training.
    """

    heads = ("mlp", "linear")

    depths: tuple[int, ...]
    dropout_rate: float = 0.5

    @nn.nowrap
    def blocks(self) -> tuple[str, ...]:
        """See `Network`."""
        return tuple(
            f"stage{i}/conv{j}"
            for i, depth in enumerate(self.depths, 1)
            for j in range(1, depth + 1)
        )

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        start: int = 0,
        stop: int | None = None,
    ) -> jax.Array:
        """Maps images (batch, height, width, channels) to (batch, num_classes)."""
        layers = Layers(train, self.dtype, self.axis_name)
        x = as_input(images, self.dtype)

        first = 0
        for i, depth in enumerate(self.depths):
            if part := within(first, depth, start, stop):
                features = self.width * min(2**i, 8)
                x = Stage(part, features, layers, name=f"stage{i + 1}")(x)
            if depth - 1 in part:
                x = max_pool(x, 2, 2)
            first += depth
        if stop is not None:
            return x
        x = global_mean(x)

        if self.head == "linear":
            return as_logits(layers.dense(x, "head", self.num_classes))
        hidden = 64 * self.width  # 4096 at the paper's width
        head = MlpHead(self.num_classes, hidden, self.dropout_rate, layers, name="head")
        return as_logits(head(x))


VARIANTS = {  # the paper's table 1, columns D and E
    "vgg16": (VGG, {"depths": (2, 2, 3, 3, 3)}),
    "vgg19": (VGG, {"depths": (2, 2, 4, 4, 4)}),
}
