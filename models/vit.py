"""Vision Transformer: patches of the image as tokens of a transformer encoder.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition
at Scale", arXiv 2010.11929, 2020. The tiny and small widths are those of Touvron et
al., "Training data-efficient image transformers", arXiv 2012.12877, 2020.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from models.layers import Layers, Network, as_input, as_logits


class PatchEmbedding(nn.Module):
    """Linear maps of the patches after a class token, plus learned positions.

    The class token starts at 0 and the positions normal with a deviation of 0.02, as
    in torchvision. They are parameters of this module and not of the network, so that
    its output is the output of the layer that they make.

    Attributes:
      features: Channels of a token.
      patch: The side of a patch, in pixels.
      layers: Applies the network's layers.
    """

    features: int
    patch: int
    layers: Layers

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, 1 + patches, features).

        Images whose sides are no multiple of the patch are padded with zeros.
        """
        x = self.layers.conv(
            images,
            "patches",
            self.features,
            self.patch,
            self.patch,
            bias=True,
            padding="SAME",
        )
        x = x.reshape(x.shape[0], -1, self.features)  # (batch, patches, features)
        dtype = self.layers.param_dtype
        token = self.param(
            "class_token", nn.initializers.zeros, (1, 1, self.features), dtype
        )
        positions = self.param(
            "positions",
            nn.initializers.normal(0.02),
            (1, 1 + x.shape[1], self.features),
            dtype,
        )
        token = jnp.broadcast_to(token, (x.shape[0], 1, self.features))
        # The paper's equation 1.
        x = jnp.concatenate([token.astype(x.dtype), x], axis=1)
        return x + positions.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; each of its four projections is a layer.

    Attributes:
      num_heads: The number of heads, which share the channels equally.
      layers: Applies the network's layers.
    """

    num_heads: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, tokens, channels) to the same shape."""
        # (batch, tokens, heads, channels of a head)
        query, key, value = (
            self.layers.dense(x, name, x.shape[-1]).reshape(
                *x.shape[:2], self.num_heads, -1
            )
            for name in ("query", "key", "value")
        )
        # Softmax in float32 or wider.
        scores = jnp.einsum("nqhc,nkhc->nhqk", query, key) * query.shape[-1] ** -0.5
        weights = nn.softmax(scores.astype(self.layers.param_dtype))
        mixed = jnp.einsum("nhqk,nkhc->nqhc", weights.astype(value.dtype), value)
        return self.layers.dense(mixed.reshape(x.shape), "out", x.shape[-1])


class Mlp(nn.Module):
    """A hidden layer of four times the channels, with dropout after both layers.

    Attributes:
      dropout_rate: The share of units dropped in training.
      layers: Applies the network's layers.
    """

    dropout_rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, tokens, channels) to the same shape."""
        y = nn.gelu(self.layers.dense(x, "hidden", 4 * x.shape[-1]), approximate=False)
        y = self.layers.dropout(y, self.dropout_rate)
        y = self.layers.dense(y, "output", x.shape[-1])
        return self.layers.dropout(y, self.dropout_rate)


class EncoderBlock(nn.Module):
    """Attention and MLP, each after a normalisation and parallel to a shortcut.

    Attributes:
      num_heads: The number of attention heads.
      dropout_rate: The share of units dropped in training.
      layers: Applies the network's layers.
    """

    num_heads: int
    dropout_rate: float
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, tokens, channels) to the same shape."""
        norm = self.layers.layer_norm
        # The paper's equations 2 and 3.
        y = Attention(self.num_heads, self.layers, name="attention")(norm(x, "norm1"))
        x = x + self.layers.dropout(y, self.dropout_rate)
        return x + Mlp(self.dropout_rate, self.layers, name="mlp")(norm(x, "norm2"))


_SharedBlock = nn.jit(EncoderBlock)  # traced once for blocks of the same shapes


class ViT(Network):
    """A Vision Transformer: stem, blocks, norm, linear head on the class token.

    The CIFAR stem has patches of 4 pixels, the ImageNet stem of 16. A head of attention
    has ``width`` channels, 64 in the paper, so all channel counts scale with it at the
    paper's number of heads.

    Attributes:
      num_heads: The number of attention heads in each block.
      depth: The number of blocks.
      dropout_rate: The share of units dropped in training, after every dense layer
        but query, key and value, and after the stem.
      share_blocks: Whether the blocks are one function of the program, which is then
        compiled several times as fast, for a CPU. Interceptors of flax see one block.
    """

    stems = ("cifar", "imagenet")

    num_heads: int
    depth: int = 12
    dropout_rate: float = 0.0
    share_blocks: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images (batch, height, width, channels) to (batch, num_classes)."""
        layers = Layers(train, self.dtype, self.axis_name)
        x = as_input(images, self.dtype)

        patch = 4 if self.stem == "cifar" else 16
        x = PatchEmbedding(self.num_heads * self.width, patch, layers, name="stem")(x)
        x = layers.dropout(x, self.dropout_rate)
        # A seed draws the same variables either way.
        is_shared = self.share_blocks and not self.is_initializing()
        kind = _SharedBlock if is_shared else EncoderBlock
        # Or else XLA copies the function to each of its calls before it compiles.
        with set_xla_metadata(**({"inlineable": "false"} if is_shared else {})):
            for i in range(self.depth):
                name = f"block{i}"
                x = kind(self.num_heads, self.dropout_rate, layers, name=name)(x)
        x = layers.layer_norm(x, "norm")

        return as_logits(layers.dense(x[:, 0], "head", self.num_classes))


VARIANTS: dict = {
    "vit-tiny": (ViT, {"num_heads": 3}),
    "vit-small": (ViT, {"num_heads": 6}),
    "vit-base": (ViT, {"num_heads": 12}),
}
