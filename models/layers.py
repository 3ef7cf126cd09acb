"""The layers of all networks, initialised and padded as in PyTorch."""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from models import convolution


class Network(nn.Module):
    """The attributes of every network, and the stems and heads that its kind has.

    Attributes:
      num_classes: The number of logits.
      stem: How the network begins, one of ``stems``.
      head: How it ends, one of ``heads``.
      width: The channels of its first stage.
      dtype: The type it computes in.
      axis_name: The mapped axis over which batch statistics are averaged.
    """

    stems: ClassVar[tuple[str, ...]] = ("cifar",)
    heads: ClassVar[tuple[str, ...]] = ("linear",)  # the first is the default

    num_classes: int
    stem: str
    head: str
    width: int
    dtype: DTypeLike
    axis_name: str | None


@dataclasses.dataclass(frozen=True)
class Layers:
    """Applies named layers inside the module that is being called.

    Every method adds one submodule called ``name`` to the calling module and applies
    it.

    Attributes:
      train: Whether batch statistics (or running ones) normalise, and units drop.
      dtype: The type of the computation.
      axis_name: The mapped axis over which batch statistics are averaged.
      normalization: The kind of ``norm``: "batch", "layer" or "none".
      kernel_init: How layers start. "pytorch": kernels and biases uniform within
        1/sqrt(fan_in), PyTorch's default (its kaiming_uniform with a = sqrt(5) is that
        bound). "he": kernels normal with variance 2/fan_in, which keeps the mean square
        of a signal through relu layers, and biases 0 (He et al., arXiv 1502.01852).
    """

    train: bool
    dtype: DTypeLike
    axis_name: str | None
    normalization: str = "batch"
    kernel_init: str = "pytorch"

    @property
    def param_dtype(self) -> DTypeLike:
        """Parameters and statistics: float32, or float64 for a float64 network."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def conv(
        self,
        x: jax.Array,
        name: str,
        features: int,
        size: int,
        stride: int = 1,
        *,
        bias: bool = False,
        groups: int = 1,
        padding: int | str | None = None,
    ) -> jax.Array:
        """A size x size convolution of x (batch, height, width, channels).

        It is depthwise if it has a group for each channel, and ungrouped otherwise.
        Without normalisation, whose shift stands for it, it always has a bias.
        """
        return nn.Conv(
            features,
            (size, size),
            strides=stride,
            # "SAME" would shift the grid of stride 2.
            padding=size // 2 if padding is None else padding,
            feature_group_count=groups,
            conv_general_dilated=convolution.depthwise
            if groups > 1
            else convolution.dense,
            use_bias=bias or self.normalization == "none",
            **self._start(size * size * x.shape[-1] // groups),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )(x)

    def dense(self, x: jax.Array, name: str, features: int) -> jax.Array:
        """An affine map of x (..., channels)."""
        return nn.Dense(
            features,
            **self._start(x.shape[-1]),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )(x)

    def norm(self, x: jax.Array, name: str) -> jax.Array:
        """Batch normalisation (Ioffe and Szegedy, arXiv 1502.03167), or another."""
        if self.normalization == "none":
            return x
        if self.normalization == "layer":
            return self.layer_norm(x, name)
        return nn.BatchNorm(
            use_running_average=not self.train,
            # The share of the old value; PyTorch's 0.1 is that of the new one. Unlike
            # PyTorch, flax folds the biased variance of the batch into the running one.
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            axis_name=self.axis_name,
            # Left on, it keeps the running statistics of a float64 network in float32.
            force_float32_reductions=self.param_dtype == jnp.float32,
            name=name,
        )(x)

    def layer_norm(self, x: jax.Array, name: str) -> jax.Array:
        """Layer normalisation (Ba et al., arXiv 1607.06450, 2016) of the channels."""
        return nn.LayerNorm(
            epsilon=1e-6,  # that of the Vision Transformer's authors, and torchvision
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            use_fast_variance=False,  # E[x^2] - E[x]^2 would cancel
            name=name,
        )(x)

    def _start(self, fan_in: int) -> dict[str, Any]:
        """The initialisers of a layer."""
        if self.kernel_init == "he":
            he = nn.initializers.he_normal()
            return {"kernel_init": he, "bias_init": nn.initializers.zeros}
        return {"kernel_init": _uniform(fan_in), "bias_init": _uniform(fan_in)}

    def dropout(self, x: jax.Array, rate: float) -> jax.Array:
        """Drops units at ``rate`` in training, drawing on the "dropout" stream."""
        return nn.Dropout(rate, deterministic=not self.train)(x)

    def drop_examples(self, x: jax.Array, rate: float) -> jax.Array:
        """Drops all of an example at ``rate`` in training, as ``dropout`` drops units.

        On a residual branch this is stochastic depth (Huang et al., arXiv 1603.09382,
        2016), with the surviving branches divided by 1 - rate.
        """
        axes = tuple(range(1, x.ndim))
        return nn.Dropout(rate, broadcast_dims=axes, deterministic=not self.train)(x)


class ConvNorm(nn.Module):
    """A convolution and its normalisation, under one name: ``conv`` and ``norm``.

    Attributes:
      features: Channels of the output.
      size: The side of the kernel.
      stride: The stride of both sides.
      layers: Applies the network's layers.
      groups: 1, or as many as channels for a depthwise convolution.
    """

    features: int
    size: int
    stride: int
    layers: Layers
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (..., features)."""
        x = self.layers.conv(
            x, "conv", self.features, self.size, self.stride, groups=self.groups
        )
        return self.layers.norm(x, "norm")


def as_input(images: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Checks that images are (batch, height, width, channels) floats and casts them."""
    if images.ndim != 4:
        raise ValueError(
            "images must have the shape (batch, height, width, channels), "
            f"got {images.shape}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats, got {images.dtype}")
    return jnp.asarray(images, dtype)


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Max pooling that leaves a side of length 1 unchanged.

    A window of 3 reaches one pixel past the edges, a window of 2 none, and would turn
    a side of 1 into an empty array. (Convolutions are padded and need no such care.)

    Args:
      x: (batch, height, width, channels).
      size: The side of the window, 2 or 3.
      stride: The step of the window.

    Returns:
      The pooled array; a side of n > 1 becomes (n + 2 * pad - size) // stride + 1.
    """
    for axis in (1, 2):
        if x.shape[axis] > 1:
            x = _pool_axis(x, axis, size, stride)
    return x


def global_mean(x: jax.Array) -> jax.Array:
    """Averages (batch, height, width, channels) to (batch, channels)."""
    return jnp.mean(x, axis=(1, 2))


def as_logits(x: jax.Array) -> jax.Array:
    """Widens half-precision logits to float32, where a softmax is safe."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _pool_axis(x: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
    # Maxima of shifted slices, because the gradient of ``lax.reduce_window`` (a
    # select-and-scatter) made a CPU step of GoogLeNet take twice as long.
    pad = (size - 1) // 2
    edges = [(pad, pad, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
    last = (x.shape[axis] - size) // stride * stride
    slices = (lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size))
    return functools.reduce(_maximum, slices)


@jax.custom_jvp
def _maximum(x: jax.Array, y: jax.Array) -> jax.Array:
    """The larger of x and y, whose gradient goes to exactly one of them.

    That of ``jnp.maximum`` goes where an argument equals the result. A compiler that
    computes an argument a second time, rounded in another way, then loses it.
    """
    return jnp.maximum(x, y)


@_maximum.defjvp
def _maximum_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    x, y = primals
    return _maximum(x, y), jnp.where(x >= y, *tangents)


def _uniform(fan_in: int) -> nn.initializers.Initializer:
    bound = fan_in**-0.5

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
