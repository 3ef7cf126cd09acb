"""Normalisation and augmentation of a batch, inside the compiled step."""

import jax
import jax.numpy as jnp
import jax.typing as jtp
import numpy as np


def normalize(
    images: jax.Array | np.ndarray,
    mean: jtp.ArrayLike,
    std: jtp.ArrayLike,
    dtype: jtp.DTypeLike = jnp.float32,
) -> jax.Array:
    """Maps uint8 pixels to ``(images/255 - mean) / std``.

    Args:
      images: uint8 ``[..., channels]``, of a batch or of one image.
      mean: ``[channels]``, mean of pixels in [0, 1], as in ``Dataset.mean``.
      std: ``[channels]``, standard deviation in the same unit.
      dtype: Dtype of the result. The arithmetic is done in float32 at least, so that
        the 256 levels stay distinct until the last rounding.

    Returns:
      Array of ``dtype``, in the shape of ``images``.

    Raises:
      TypeError: If the images are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"images are {images.dtype}: give uint8 pixels, 0 to 255")
    wide = jnp.promote_types(dtype, jnp.float32)
    channels = (1,) * (images.ndim - 1) + (-1,)
    mean = jnp.asarray(mean, wide).reshape(channels)
    std = jnp.asarray(std, wide).reshape(channels)
    return ((jnp.asarray(images).astype(wide) / 255 - mean) / std).astype(dtype)


def augment(
    key: jax.Array,
    images: jax.Array,
    positions: jax.Array,
    *,
    crop_padding: int,
    flips: bool,
) -> jax.Array:
    """Pads each image and crops it at random, then mirrors it with probability 1/2.

    Apply it before ``normalize``: the padding is 0, which is black there, as in
    PyTorch's ``RandomCrop(size, padding)`` followed by ``RandomHorizontalFlip()``.

    The random choices for an image depend on ``key`` and on its position in the global
    batch alone. They are the same however the batch is divided among devices,
    processes or calls.

    Args:
      key: Random key, a different one at each step.
      images: ``[n, height, width, channels]`` of any dtype.
      positions: Integers ``[n]``, the index of each image in the global batch.
      crop_padding: Pixels of padding on each side; 0 for no crops. Each of the
        ``(2*crop_padding + 1)**2`` crops is equally likely.
      flips: Whether to mirror left and right.

    Returns:
      Images of the same shape and dtype.
    """
    pad = crop_padding

    def augment_one(image: jax.Array, position: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, position))
        if pad:
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            row, column = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
            image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
        if flips:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image

    return jax.vmap(augment_one)(images, positions)
