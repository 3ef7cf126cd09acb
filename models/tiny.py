"""Tiny: two convolutions, for tests and first experiments."""

import flax.linen as nn
import jax

from models.layers import ConvNorm, Layers, Network, as_input, as_logits, global_mean


class Tiny(Network):
    """Two normalised 3x3 convolutions, the second with stride 2, and a linear head."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to (batch, num_classes)."""
        layers = Layers(train, self.dtype, self.axis_name)
        x = as_input(images, self.dtype)
        x = nn.relu(ConvNorm(self.width, 3, 1, layers, name="stage1")(x))
        x = nn.relu(ConvNorm(2 * self.width, 3, 2, layers, name="stage2")(x))
        return as_logits(layers.dense(global_mean(x), "head", self.num_classes))


VARIANTS: dict = {"tiny": (Tiny, {})}
