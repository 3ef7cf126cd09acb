"""VGG: stages of 3x3 convolutions with a max pooling after each.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", arXiv 1409.1556, 2014; here with batch normalisation, which is younger,
unless ``normalization`` says otherwise.
"""

import functools

import flax.linen as nn
import jax

from models.blocks import Block, BlockNetwork
from models.layers import Layers, max_pool


class ConvStage(nn.Module):
    """Convolutions, each with a bias, a normalisation and a relu; a pooling.

    Attributes:
      features: Channels of the output.
      depth: The number of convolutions.
    """

    features: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layers, *, index: int) -> jax.Array:
        """Runs one convolution, from 1, on (batch, height, width, channels)."""
        x = layers.conv(x, f"conv{index}", self.features, 3, bias=True)
        x = nn.relu(layers.norm(x, f"norm{index}"))
        return max_pool(x, 2, 2) if index == self.depth else x


class VGG(BlockNetwork):
    """A VGG network: five stages, mean, and an MLP or a linear head.

    Features are averaged to 1x1 before the head, where the paper has 7x7 of them. A
    block is a convolution with its normalisation and relu, and the pooling after it.

    Attributes:
      depths: The number of convolutions in each stage.
    """

    heads = ("mlp", *BlockNetwork.heads)

    depths: tuple[int, ...]

    @nn.nowrap
    def blocks(self) -> dict[str, Block]:
        """See ``BlockNetwork``."""
        blocks: dict[str, Block] = {}
        for i, depth in enumerate(self.depths):
            # 64, 128, 256, 512 and 512 channels at the usual width.
            name, features = f"stage{i + 1}", self.width * min(2**i, 8)
            stage = ConvStage(features, depth, name=name)
            for index in range(1, depth + 1):
                blocks[f"{name}/conv{index}"] = functools.partial(stage, index=index)
        return blocks


VARIANTS = {
    "vgg16": (VGG, {"depths": (2, 2, 3, 3, 3)}),  # the paper's table 1, column D
    "vgg19": (VGG, {"depths": (2, 2, 4, 4, 4)}),  # column E
    "vgg29": (VGG, {"depths": (4, 4, 6, 6, 6)}),  # twice the convolutions of VGG-16
}
