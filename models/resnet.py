"""ResNet: stages of residual blocks.

He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, 2015. The
CIFAR stem is the one in general use for these widths, not the paper's 6n + 2 networks.
"""

import flax.linen as nn
import jax

from models.layers import (
    ConvNorm,
    Layers,
    Network,
    as_input,
    as_logits,
    global_mean,
    max_pool,
    within,
)


class Basic(nn.Module):
    """Two 3x3 convolutions parallel to a shortcut (the paper's figure 5, left)."""

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (..., features)."""
        conv, norm = self.layers.conv, self.layers.norm
        y = nn.relu(norm(conv(x, "conv1", self.features, 3, self.stride), "norm1"))
        y = norm(conv(y, "conv2", self.features, 3), "norm2")
        return nn.relu(y + _shortcut(x, y, self.stride, self.layers))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with four times the features at the end (figure 5, right).

    The 3x3 convolution takes the stride, as in PyTorch; the paper's first 1x1 did.
    """

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (..., 4 * features)."""
        conv, norm = self.layers.conv, self.layers.norm
        y = nn.relu(norm(conv(x, "conv1", self.features, 1), "norm1"))
        y = nn.relu(norm(conv(y, "conv2", self.features, 3, self.stride), "norm2"))
        y = norm(conv(y, "conv3", 4 * self.features, 1), "norm3")
        return nn.relu(y + _shortcut(x, y, self.stride, self.layers))


def _shortcut(x: jax.Array, y: jax.Array, stride: int, layers: Layers) -> jax.Array:
    if x.shape == y.shape:
        return x
    return ConvNorm(y.shape[-1], 1, stride, layers, name="shortcut")(x)


class Stage(nn.Module):
    """A sequence of blocks, the first of which has the stride.

    Attributes:
        part: the indices of its blocks that are run.
    """

    block: type[Basic] | type[Bottleneck]
    part: range
    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to the last block's output."""
        for i in self.part:
            stride = self.stride if i == 0 else 1
            x = self.block(self.features, stride, self.layers, name=f"block{i}")(x)
        return x


class ResNet(Network):
    """A residual network: stem, four stages, mean, linear head.

    Its first block is the stem, with a pooling if it has one; the others are the
    residual blocks.

    Attributes:
        block: the kind of residual block.
        depths: the number of blocks in each stage.
    """

    stems = ("cifar", "imagenet")

    block: type[Basic] | type[Bottleneck]
    depths: tuple[int, ...]

    @nn.nowrap
    def blocks(self) -> tuple[str, ...]:
        """See `Network`."""
        return "stem", *(
            f"stage{i}/block{j}"
            for i, depth in enumerate(self.depths, 1)
            for j in range(depth)
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

        if not within(0, 1, start, stop):
            pass
        elif self.stem == "cifar":
            x = nn.relu(ConvNorm(self.width, 3, 1, layers, name="stem")(x))
        else:
            x = nn.relu(ConvNorm(self.width, 7, 2, layers, name="stem")(x))
            x = max_pool(x, 3, 2)

        first = 1
        for i, depth in enumerate(self.depths):
            if part := within(first, depth, start, stop):
                features, stride = self.width * 2**i, 1 if i == 0 else 2
                name = f"stage{i + 1}"
                x = Stage(self.block, part, features, stride, layers, name=name)(x)
            first += depth
        if stop is not None:
            return x

        return as_logits(layers.dense(global_mean(x), "head", self.num_classes))


VARIANTS = {  # the paper's table 1
    "resnet18": (ResNet, {"block": Basic, "depths": (2, 2, 2, 2)}),
    "resnet34": (ResNet, {"block": Basic, "depths": (3, 4, 6, 3)}),
    "resnet50": (ResNet, {"block": Bottleneck, "depths": (3, 4, 6, 3)}),
    "resnet101": (ResNet, {"block": Bottleneck, "depths": (3, 4, 23, 3)}),
}
