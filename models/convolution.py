"""Convolutions in forms that XLA compiles well for a CPU; elsewhere they are lax's own.

Both functions are called as ``lax.conv_general_dilated`` by ``flax.linen.Conv``, with
x (batch, height, width, channels) and a kernel (rows, columns, channels, features).
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def dense(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """A convolution in which all channels meet.

    On a CPU it is a matrix product where the sides of its output are at most 2. XLA's
    own, with its gradient, took 2 to 5 times as long there; from 4 on it is as quick.
    """
    if isinstance(padding, str):  # "SAME" of ViT's patches, which do not overlap
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        places = _places(x, kernel.shape[:2], strides, padding)
        # (..., places * channels) @ (places * channels, features)
        return jnp.concatenate(places, -1) @ kernel.reshape(-1, kernel.shape[-1])

    sides = jax.eval_shape(convolve, x, kernel).shape[1:3]
    if kernel.shape[:2] == (1, 1) or max(sides) > 2:
        return convolve(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=multiply, default=convolve)


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """A convolution of each channel alone, on a CPU a sum of shifted products.

    XLA's own, with its gradient, took 3 to 10 times as long there.
    """

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    def shift(x: jax.Array, kernel: jax.Array) -> jax.Array:
        places = _places(x, kernel.shape[:2], strides, padding)
        # One kernel (1, 1, 1, channels) for each place.
        kernels = kernel.reshape(-1, 1, 1, 1, x.shape[-1])
        return functools.reduce(jnp.add, map(jnp.multiply, places, kernels))

    return lax.platform_dependent(x, kernel, cpu=shift, default=convolve)


def _places(
    x: jax.Array,
    size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> list[jax.Array]:
    """The inputs that each place of a kernel meets: arrays of the output's sides."""
    edges = [(low, high, 0) for low, high in padding]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    batch, height, width, channels = x.shape
    rows, columns = size
    # One past the last place of the window's corner.
    bottom = (height - rows) // strides[0] * strides[0] + 1
    right = (width - columns) // strides[1] * strides[1] + 1
    return [
        lax.slice(
            x, (0, i, j, 0), (batch, i + bottom, j + right, channels), (1, *strides, 1)
        )
        for i, j in itertools.product(range(rows), range(columns))
    ]
