"""ResNet: stages of residual blocks.

He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, 2015. The
CIFAR stem is the one in general use for these widths, not the paper's 6n + 2 networks.
"""

import functools

import flax.linen as nn
import jax

from models.blocks import Block, BlockNetwork
from models.layers import ConvNorm, Layers, max_pool


class Basic(nn.Module):
    """Two 3x3 convolutions parallel to a shortcut (the paper's figure 5, left).

    Attributes:
      features: Channels of the output.
      stride: The first convolution's stride.
      layers: Applies the network's layers.
    """

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

    Attributes:
      features: Channels of the 3x3 convolution.
      stride: Its stride.
      layers: Applies the network's layers.
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
    # The paper's option B: a projection only where the shape changes.
    if x.shape == y.shape:
        return x
    return ConvNorm(y.shape[-1], 1, stride, layers, name="shortcut")(x)


class ResidualStage(nn.Module):
    """A sequence of blocks, the first of which has the stride.

    Attributes:
      block: The kind of residual block.
      features: Channels of a block, without ``Bottleneck``'s factor of four.
      stride: The first block's stride.
    """

    block: type[Basic] | type[Bottleneck]
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layers, *, index: int) -> jax.Array:
        """Runs one block on (batch, height, width, channels)."""
        stride = self.stride if index == 0 else 1
        return self.block(self.features, stride, layers, name=f"block{index}")(x)


class ResNet(BlockNetwork):
    """A residual network: stem, four stages, mean, linear head.

    Its first block is the stem, with a pooling if it has one; the others are the
    residual blocks.

    Attributes:
      block: The kind of residual block.
      depths: The number of blocks in each stage.
    """

    stems = ("cifar", "imagenet")

    block: type[Basic] | type[Bottleneck]
    depths: tuple[int, ...]

    @nn.nowrap
    def blocks(self) -> dict[str, Block]:
        """See ``BlockNetwork``."""
        blocks: dict[str, Block] = {"stem": self._stem}
        for i, depth in enumerate(self.depths):
            name, features, stride = f"stage{i + 1}", self.width * 2**i, min(i + 1, 2)
            # Called once for each block, so that the network can be cut between them.
            stage = ResidualStage(self.block, features, stride, name=name)
            for index in range(depth):
                blocks[f"{name}/block{index}"] = functools.partial(stage, index=index)
        return blocks

    @nn.nowrap
    def _stem(self, x: jax.Array, layers: Layers) -> jax.Array:
        if self.stem == "cifar":
            return nn.relu(ConvNorm(self.width, 3, 1, layers, name="stem")(x))
        x = nn.relu(ConvNorm(self.width, 7, 2, layers, name="stem")(x))
        return max_pool(x, 3, 2)


VARIANTS = {  # the paper's table 1
    "resnet18": (ResNet, {"block": Basic, "depths": (2, 2, 2, 2)}),
    "resnet34": (ResNet, {"block": Basic, "depths": (3, 4, 6, 3)}),
    "resnet50": (ResNet, {"block": Bottleneck, "depths": (3, 4, 6, 3)}),
    "resnet101": (ResNet, {"block": Bottleneck, "depths": (3, 4, 23, 3)}),
}
