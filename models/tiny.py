"""Tiny: two convolutions, for tests and first experiments."""

import functools

import flax.linen as nn
import jax

from models.blocks import Block, BlockNetwork
from models.layers import ConvNorm, Layers


class Tiny(BlockNetwork):
    """Two normalised 3x3 convolutions, the second with stride 2, and a linear head.

    Each convolution is a block.
    """

    @nn.nowrap
    def blocks(self) -> dict[str, Block]:
        """See ``BlockNetwork``."""
        return {f"stage{i}": functools.partial(self._stage, number=i) for i in (1, 2)}

    @nn.nowrap
    def _stage(self, x: jax.Array, layers: Layers, *, number: int) -> jax.Array:
        name = f"stage{number}"  # its number multiplies the width and is the stride
        return nn.relu(ConvNorm(number * self.width, 3, number, layers, name=name)(x))


VARIANTS: dict = {"tiny": (Tiny, {})}
