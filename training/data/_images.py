"""What happens to a batch of images inside the compiled step."""

import jax
import jax.numpy as jnp
import jax.typing as jtp


def normalize(
    images: jax.Array,
    mean: jtp.ArrayLike,
    std: jtp.ArrayLike,
    dtype: jtp.DTypeLike = jnp.float32,
) -> jax.Array:
    """Maps uint8 pixels to ``(images/255 - mean) / std``.

    Args:
      images: uint8 ``[..., channels]``.
      mean: ``[channels]``, of pixels in [0, 1].
      std: ``[channels]``, in the same unit.
      dtype: of the result. The arithmetic is done in float32 at least, so that the
        256 levels stay apart until the last rounding.

    Returns:
      Array of ``dtype`` and of the shape of ``images``.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    channels = (1,) * (images.ndim - 1) + (-1,)
    mean = jnp.asarray(mean, wide).reshape(channels)
    std = jnp.asarray(std, wide).reshape(channels)
    return ((images.astype(wide) / 255 - mean) / std).astype(dtype)


def augment(
    key: jax.Array,
    images: jax.Array,
    positions: jax.Array,
    *,
    crop_padding: int,
    flips: bool,
) -> jax.Array:
    """Crops each image at random out of its padded self, and mirrors half of them.

    Meant for images before ``normalize``: the padding is 0, which is black there, as
    in PyTorch's ``RandomCrop(size, padding)`` followed by ``RandomHorizontalFlip()``.

    An image's randomness comes from ``key`` and from its position in the global batch
    alone. So a batch may be cut over any number of devices, processes or calls, and
    every image comes out the same.

    Args:
      key: a key of this step's own.
      images: ``[n, height, width, channels]`` of any dtype.
      positions: integers ``[n]``, where each image stands in the global batch.
      crop_padding: pixels of padding on each side; 0 for no crops. Each of the
        ``(2*crop_padding + 1)**2`` windows is equally likely.
      flips: whether to mirror left and right, with probability 1/2.

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
