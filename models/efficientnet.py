"""EfficientNet-B0: inverted residual blocks with squeeze-and-excitation.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
arXiv 1905.11946, 2019. Dropout and stochastic depth are those of torchvision.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import ConvNorm, Layers, Network, as_input, as_logits, global_mean


class StageSettings(NamedTuple):
    """A stage: a row of the paper's table 1.

    Attributes:
      expansion: The factor from a block's input channels to its inner ones.
      features: Channels of the output, at width 64.
      depth: The number of blocks.
      size: The side of the depthwise kernels.
      stride: The first block's stride.
    """

    expansion: int
    features: int
    depth: int
    size: int
    stride: int


STAGES = (
    StageSettings(1, 16, 1, 3, 1),
    StageSettings(6, 24, 2, 3, 2),
    StageSettings(6, 40, 2, 5, 2),
    StageSettings(6, 80, 3, 3, 2),
    StageSettings(6, 112, 3, 5, 1),
    StageSettings(6, 192, 4, 5, 2),
    StageSettings(6, 320, 1, 3, 1),
)


class SqueezeExcitation(nn.Module):
    """Factors in (0, 1) for the channels (Hu et al., arXiv 1709.01507, 2017).

    Attributes:
      squeezed: The number of hidden units.
      layers: Applies the network's layers.
    """

    squeezed: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, 1, 1, channels)."""
        conv = self.layers.conv
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = nn.silu(conv(y, "reduce", self.squeezed, 1, bias=True))
        return nn.sigmoid(conv(y, "expand", x.shape[-1], 1, bias=True))


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection.

    Squeeze-and-excitation has a quarter of the block's input channels. A block that
    keeps the shape is parallel to a shortcut.

    Attributes:
      features: Channels of the output.
      expansion: The factor from the input's channels to the inner ones.
      size: The side of the depthwise kernel.
      stride: The depthwise convolution's stride.
      drop_rate: The share of examples for which the block is dropped in training.
      layers: Applies the network's layers.
    """

    features: int
    expansion: int
    size: int
    stride: int
    drop_rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (..., features)."""
        layers, inputs = self.layers, x.shape[-1]
        inner = inputs * self.expansion
        y = x
        if self.expansion > 1:
            y = nn.silu(ConvNorm(inner, 1, 1, layers, name="expand")(y))
        depthwise = ConvNorm(
            inner, self.size, self.stride, layers, groups=inner, name="depthwise"
        )
        y = nn.silu(depthwise(y))
        y = y * SqueezeExcitation(max(1, inputs // 4), layers, name="squeeze")(y)
        y = ConvNorm(self.features, 1, 1, layers, name="project")(y)
        if self.stride == 1 and inputs == self.features:
            y = x + layers.drop_examples(y, self.drop_rate)
        return y


class MBConvStage(nn.Module):
    """A sequence of blocks, the first of which has the stride.

    Attributes:
      blocks: Their settings; the features there are those at width 64.
      features: Channels of the output.
      drop_rates: The share of examples for which a block is dropped, by block.
      layers: Applies the network's layers.
    """

    blocks: StageSettings
    features: int
    drop_rates: tuple[float, ...]
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to the last block's output."""
        expansion, _, depth, size, stride = self.blocks
        for i in range(depth):
            x = MBConv(
                self.features,
                expansion,
                size,
                stride if i == 0 else 1,
                self.drop_rates[i],
                self.layers,
                name=f"block{i}",
            )(x)
        return x


class EfficientNet(Network):
    """An EfficientNet: stem, seven stages, 1x1 convolution, mean, dropout, linear head.

    At a width other than 64, every channel count of the paper is multiplied by
    width / 64 and rounded to a multiple of 8 as published: to the nearest, or the next
    if that is less than 90 %, and at least 8.

    Attributes:
      dropout_rate: The share of the last features dropped in training.
      stochastic_depth_rate: The share of examples for which a block is dropped in
        training; it rises linearly from 0 at the first block to this after the
        last.
    """

    stems = ("cifar", "imagenet")

    dropout_rate: float = 0.2
    stochastic_depth_rate: float = 0.2

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to (batch, num_classes)."""
        layers = Layers(train, self.dtype, self.axis_name)
        x = as_input(images, self.dtype)

        stride = 1 if self.stem == "cifar" else 2
        x = ConvNorm(_scale(32, self.width), 3, stride, layers, name="stem")(x)
        x = nn.silu(x)

        total, first = sum(blocks.depth for blocks in STAGES), 0
        for i, blocks in enumerate(STAGES):
            numbers = range(first, first + blocks.depth)
            first += blocks.depth
            rates = tuple(self.stochastic_depth_rate * n / total for n in numbers)
            features = _scale(blocks.features, self.width)
            x = MBConvStage(blocks, features, rates, layers, name=f"stage{i + 1}")(x)

        # 1280 channels at width 64, in the last row of the table.
        x = nn.silu(ConvNorm(4 * x.shape[-1], 1, 1, layers, name="last")(x))
        x = layers.dropout(global_mean(x), self.dropout_rate)
        return as_logits(layers.dense(x, "head", self.num_classes))


def _scale(channels: int, width: int) -> int:
    # `round_filters` of the authors' program.
    exact = channels * width / 64
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8


VARIANTS: dict = {"efficientnet-b0": (EfficientNet, {})}
