"""GoogLeNet: nine inception modules.

Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842, 2014. As generally
trained on CIFAR: batch normalisation instead of the auxiliary heads, and two 3x3
convolutions instead of the 5x5 (Szegedy et al., arXiv 1512.00567, 2015).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import (
    ConvNorm,
    Layers,
    Network,
    as_input,
    as_logits,
    global_mean,
    max_pool,
)


class Branches(NamedTuple):
    """Channels of an inception module, in the order of the paper's table 1.

    Attributes:
      conv1: The 1x1 branch.
      reduce3: The 1x1 convolution before the 3x3.
      conv3: The 3x3 branch.
      reduce5: The 1x1 convolution before the 5x5.
      conv5: The 5x5 branch.
      pool: The 1x1 convolution after the pooling.
    """

    conv1: int
    reduce3: int
    conv3: int
    reduce5: int
    conv5: int
    pool: int


STAGES = {  # a max pooling stands before stage 4 and before stage 5
    "stage3": (Branches(64, 96, 128, 16, 32, 32), Branches(128, 128, 192, 32, 96, 64)),
    "stage4": (
        Branches(192, 96, 208, 16, 48, 64),
        Branches(160, 112, 224, 24, 64, 64),
        Branches(128, 128, 256, 24, 64, 64),
        Branches(112, 144, 288, 32, 64, 64),
        Branches(256, 160, 320, 32, 128, 128),
    ),
    "stage5": (
        Branches(256, 160, 320, 32, 128, 128),
        Branches(384, 192, 384, 48, 128, 128),
    ),
}


class Inception(nn.Module):
    """Four parallel branches, concatenated (the paper's figure 2b).

    Attributes:
      branches: Their channels.
      layers: Applies the network's layers.
    """

    branches: Branches
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to the branches' channels."""

        def conv(x: jax.Array, name: str, features: int, size: int) -> jax.Array:
            return nn.relu(ConvNorm(features, size, 1, self.layers, name=name)(x))

        features = self.branches
        one = conv(x, "conv1", features.conv1, 1)
        three = conv(x, "reduce3", features.reduce3, 1)
        three = conv(three, "conv3", features.conv3, 3)
        five = conv(x, "reduce5", features.reduce5, 1)
        five = conv(five, "conv5a", features.conv5, 3)
        five = conv(five, "conv5b", features.conv5, 3)
        pool = conv(max_pool(x, 3, 1), "pool", features.pool, 1)
        return jnp.concatenate([one, three, five, pool], axis=-1)


class InceptionStem(nn.Module):
    """Three convolutions; the ImageNet kind also shrinks the image fourfold.

    Attributes:
      kind: "cifar" or "imagenet".
      scale: Maps the paper's number of channels to the network's.
      layers: Applies the network's layers.
    """

    kind: str
    scale: Callable[[int], int]
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to scale(192) channels."""
        # (side, stride) of each; the ImageNet ones are those of table 1.
        imagenet = self.kind == "imagenet"
        sizes = ((7, 2), (1, 1), (3, 1)) if imagenet else ((3, 1), (3, 1), (3, 1))
        for i, features in enumerate((64, 64, 192)):
            x = self.layers.conv(x, f"conv{i + 1}", self.scale(features), *sizes[i])
            x = nn.relu(self.layers.norm(x, f"norm{i + 1}"))
            if imagenet and i == 0:
                x = max_pool(x, 3, 2)
        return max_pool(x, 3, 2)


class InceptionStage(nn.Module):
    """A sequence of inception modules.

    Attributes:
      blocks: The channels of each.
      layers: Applies the network's layers.
    """

    blocks: tuple[Branches, ...]
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to the last block's output."""
        for i, branches in enumerate(self.blocks):
            x = Inception(branches, self.layers, name=f"block{i}")(x)
        return x


class GoogLeNet(Network):
    """An inception network: stem, three stages, mean, dropout, linear head.

    At a width other than 64, every channel count of the paper is multiplied by
    width / 64, rounded to the nearest integer (halves up), and is at least 1.

    Attributes:
      dropout_rate: The share of the last features dropped in training; the paper's.
    """

    stems = ("cifar", "imagenet")

    dropout_rate: float = 0.4

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to (batch, num_classes)."""
        layers = Layers(train, self.dtype, self.axis_name)
        x = as_input(images, self.dtype)

        scale = functools.partial(_scale, width=self.width)
        x = InceptionStem(self.stem, scale, layers, name="stem")(x)
        for name, blocks in STAGES.items():
            if name != "stage3":
                x = max_pool(x, 3, 2)
            scaled = tuple(Branches(*map(scale, branches)) for branches in blocks)
            x = InceptionStage(scaled, layers, name=name)(x)

        x = layers.dropout(global_mean(x), self.dropout_rate)
        return as_logits(layers.dense(x, "head", self.num_classes))


def _scale(channels: int, width: int) -> int:
    return max(1, (channels * width + 32) // 64)


VARIANTS: dict = {"googlenet": (GoogLeNet, {})}
