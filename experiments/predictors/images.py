"""A narrow ResNet-18 on part of CIFAR-100."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import models
from training import data as data_lib

WIDTH, BATCH = 4, 64
TRAIN_FRACTION = 0.2
_EVALUATED = 1000  # images of the validation part
_REFRESHING = 4  # batches for the statistics of averaged parameters

_network = models.create("resnet18", num_classes=100, width=WIDTH)


def data() -> Any:
    """Training and held-out images with labels, and the mean and deviation of pixels.

    CIFAR-100 as tensorflow-datasets prepares it, in ``TFDS_DATA_DIR``.
    """
    found = data_lib.load("cifar100", train_fraction=TRAIN_FRACTION)
    held_out = (part[:_EVALUATED] for part in found.validation)
    arrays = (*found.train, *held_out, found.mean, found.std)
    return tuple(map(jnp.asarray, arrays))


def init(key: jax.Array) -> tuple[Any, Any]:
    """Parameters and statistics of batch normalisation."""
    variables = _network.init(key, jnp.zeros((1, 32, 32, 3)), train=False)
    return variables["params"], variables["batch_stats"]


def batch(data: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images drawn with replacement, cropped and mirrored at random, and labels."""
    images, labels, _, _, mean, std = data
    draw, change = jax.random.split(key)
    chosen = jax.random.randint(draw, (BATCH,), 0, len(images))
    pixels = data_lib.augment(
        change, images[chosen], jnp.arange(BATCH), crop_padding=4, flips=True
    )
    return data_lib.normalize(pixels, mean, std), labels[chosen]


def loss(params: Any, stats: Any, batch: Any) -> tuple[jax.Array, Any]:
    """Mean cross-entropy in nats, and the new statistics."""
    images, labels = batch
    logits, changed = _network.apply(
        {"params": params, "batch_stats": stats},
        images,
        train=True,
        mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), changed["batch_stats"]


def statistics(params: Any, stats: Any, data: Any) -> Any:
    """Statistics of batch normalisation for these parameters: means over batches."""
    collected = []
    for i in range(_REFRESHING):
        _, new = loss(params, stats, batch(data, jax.random.key(i)))
        # 0.9 of the old and 0.1 of the batch's.
        collected.append(jax.tree.map(lambda n, o: 10 * n - 9 * o, new, stats))
    return jax.tree.map(lambda *x: sum(x) / len(x), *collected)


def evaluate(params: Any, stats: Any, data: Any) -> jax.Array:
    """The loss on the held-out images."""
    _, _, pixels, labels, mean, std = data
    logits = _network.apply(
        {"params": params, "batch_stats": stats},
        data_lib.normalize(pixels, mean, std),
        train=False,
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
