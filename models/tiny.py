"""Tiny: two convolutions, for tests and first experiments."""

import flax.linen as nn
import jax

from models.layers import (
    ConvNorm,
    Layers,
    Network,
    as_input,
    as_logits,
    global_mean,
    within,
)


class Tiny(Network):
    """Two normalised 3x3 convolutions, the second with stride 2, and a linear head.

    Each convolution is a block.
    """

    @nn.nowrap
    def blocks(self) -> tuple[str, ...]:
        """See `Network`."""
        return "stage1", "stage2"

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
        for i in within(0, 2, start, stop):
            features, name = (i + 1) * self.width, f"stage{i + 1}"
            x = nn.relu(ConvNorm(features, 3, i + 1, layers, name=name)(x))
        if stop is not None:
            return x
        return as_logits(layers.dense(global_mean(x), "head", self.num_classes))


VARIANTS: dict = {"tiny": (Tiny, {})}
