"""Plain: a small network without normalisation, whose loss is a smooth function."""

import flax.linen as nn
import jax

from models.layers import Layers, Network, as_input, as_logits, global_mean


class Plain(Network):
    """Two 3x3 convolutions with biases and tanh, and a linear head.

    The second convolution has stride 2. Without normalisation the loss depends on the
    norm of the weights, and tanh has all derivatives: what the theory of optimisation
    assumes of a loss, and what the curvature of one means most on.
    """

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to (batch, num_classes)."""
        layers = Layers(train, self.dtype, self.axis_name)
        x = as_input(images, self.dtype)
        x = nn.tanh(layers.conv(x, "conv1", self.width, 3, bias=True))
        x = nn.tanh(layers.conv(x, "conv2", 2 * self.width, 3, 2, bias=True))
        return as_logits(layers.dense(global_mean(x), "head", self.num_classes))


VARIANTS: dict = {"plain": (Plain, {})}
