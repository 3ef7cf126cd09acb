"""Tasks: characters with AdamW, images with SGD and Nesterov momentum."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from experiments.predictors import characters
from experiments.predictors.characters import rms_norm
from training import data
from training.data.pixels import normalize

_BATCH = 64  # images in a training step
_STATISTICS_BATCHES, _STATISTICS_BATCH = 10, 128
_EVALUATED, _EVALUATION_BATCH = 2000, 500  # held-out images
_MIXERS = 2


class ReadoutTask(NamedTuple):
    """A network, its data and its optimizer.

    Attributes:
      init: Maps a key to variables: ``params`` and, with batch normalisation,
        ``batch_stats``.
      loss: Maps variables and a batch to the loss.
      sample: Maps a key to a batch.
      evaluate: Maps variables to the losses on the two halves of the held-out data.
      direction: The optimizer at a learning rate of -1.
      loops: Whether steps are inside a loop of one program, which is faster; False
        where they have convolutions, whose backward pass is many times slower inside a
        loop on a CPU.
    """

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    sample: Callable[[jax.Array], Any]
    evaluate: Callable[[Any], jax.Array]
    direction: optax.GradientTransformation
    loops: bool


def _adamw(momentum: float) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(b1=momentum, b2=0.99), optax.add_decayed_weights(0.01)
    )


def _nesterov(momentum: float) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(5e-4), optax.trace(momentum, nesterov=True)
    )


@functools.cache
def make(name: str, data_dir: str | None = None, momentum: float = 0.9) -> ReadoutTask:
    """Returns a task by name; ``data_dir`` holds prepared sets."""
    _, task = TASKS[name]
    return task(data_dir, momentum)


def _characters(
    width: int, layers: int, data_dir: str | None, momentum: float
) -> ReadoutTask:
    text = _, windows = characters.data(256)
    return ReadoutTask(
        init=lambda key: {"params": characters.init(key, width, layers)},
        loss=lambda variables, batch: characters.loss(variables["params"], batch),
        sample=lambda key: characters.batch(text, key),
        evaluate=jax.jit(
            lambda variables: jnp.stack(
                [characters.loss(variables["params"], windows[i::2]) for i in (0, 1)]
            )
        ),
        direction=_adamw(momentum),
        loops=True,
    )


def _images(
    dataset: str, data_dir: str | None
) -> tuple[Callable[[jax.Array], Any], Any, Any]:
    """A function that draws a batch, the training images, the held-out examples."""
    loaded = data.load(
        dataset,
        data_dir=data_dir,
        image_size=None,
        validation_fraction=0.2,
        train_fraction=1.0,
        split_seed=0,
    )
    mean, std = (jnp.asarray(x, jnp.float32) for x in (loaded.mean, loaded.std))

    def prepare(images: Any) -> jax.Array:
        return normalize(images, mean, std, jnp.float32)

    images, labels = map(jnp.asarray, loaded.train)
    held_out = [jnp.asarray(x[:_EVALUATED]) for x in loaded.validation]

    def sample(key: jax.Array) -> Any:
        chosen = jax.random.randint(key, (_BATCH,), 0, len(labels))
        return prepare(images[chosen]), labels[chosen]

    return sample, prepare, (images, *held_out)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _patches(
    dataset: str, patch: int, width: int, data_dir: str | None, momentum: float
) -> ReadoutTask:
    """Layers that mix patches and layers that mix channels, without batch statistics.

    After MLP-Mixer (Tolstikhin et al., arXiv 2105.01601).
    """
    sample, prepare, (images, *held_out) = _images(dataset, data_dir)
    side, channels = images.shape[1] // patch, images.shape[-1]
    patches, classes = side**2, int(held_out[1].max()) + 1

    def init(key: jax.Array) -> Any:
        keys = iter(jax.random.split(key, 2 + 4 * _MIXERS))

        def normal(fan_in: int, fan_out: int, scale: float = 1.0) -> jax.Array:
            sigma = scale / np.sqrt(fan_in)
            return sigma * jax.random.normal(next(keys), (fan_in, fan_out))

        deep = 1 / np.sqrt(2 * _MIXERS)
        blocks = [
            {
                "mix": normal(patches, 2 * patches),
                "unmix": normal(2 * patches, patches, deep),
                "expand": normal(width, 2 * width),
                "contract": normal(2 * width, width, deep),
                "scales": jnp.ones((2, width)),
            }
            for _ in range(_MIXERS)
        ]
        embedding = normal(channels * patch**2, width)
        head = normal(width, classes)
        return {"params": {"embedding": embedding, "blocks": blocks, "head": head}}

    def two_layers(x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        # Two axes, not three: XLA's gradient on a CPU is twice as fast.
        hidden = jax.nn.gelu(x.reshape(-1, x.shape[-1]) @ first)
        return (hidden @ second).reshape(x.shape)

    def predict(params: Any, pixels: jax.Array) -> jax.Array:
        x = pixels.reshape(-1, side, patch, side, patch, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(pixels) * patches, -1)
        x = (x @ params["embedding"]).reshape(len(pixels), patches, width)
        for block in params["blocks"]:
            first, second = block["scales"]
            mixed = (rms_norm(x) * first).swapaxes(1, 2)
            x = x + two_layers(mixed, block["mix"], block["unmix"]).swapaxes(1, 2)
            normal = rms_norm(x) * second
            x = x + two_layers(normal, block["expand"], block["contract"])
        return rms_norm(x).mean(axis=1) @ params["head"]

    def loss(variables: Any, batch: Any) -> jax.Array:
        pixels, labels = batch
        return _cross_entropy(predict(variables["params"], pixels), labels).mean()

    @jax.jit
    def evaluate(variables: Any) -> jax.Array:
        def one(batch: Any) -> jax.Array:
            pixels, labels = batch
            logits = predict(variables["params"], prepare(pixels))
            return _cross_entropy(logits, labels)

        size = min(_EVALUATION_BATCH, len(held_out[1]))
        count = len(held_out[1]) // size
        batches = [
            x[: count * size].reshape(count, size, *x.shape[1:]) for x in held_out
        ]
        losses = jax.lax.map(one, tuple(batches)).reshape(-1)
        return jnp.stack([losses[0::2].mean(), losses[1::2].mean()])

    return ReadoutTask(init, loss, sample, evaluate, _nesterov(momentum), loops=True)


def _resnet(width: int, data_dir: str | None, momentum: float) -> ReadoutTask:
    """ResNet-18; batch statistics are those of the parameters that are evaluated."""
    sample, prepare, (images, *held_out) = _images("cifar100", data_dir)
    network = models.create("resnet18", 100, width=width)

    def train(variables: Any, pixels: jax.Array) -> Any:
        return network.apply(variables, pixels, train=True, mutable=["batch_stats"])

    def init(key: jax.Array) -> Any:
        return network.init(key, jnp.zeros((1, 32, 32, 3)), train=False)

    def loss(variables: Any, batch: Any) -> jax.Array:
        pixels, labels = batch
        logits: Any = train(variables, pixels)[0]
        return _cross_entropy(logits, labels).mean()

    @jax.jit
    def statistics(variables: Any, pixels: jax.Array) -> Any:
        # From zeros, of which Flax keeps 0.9.
        zero = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        _, after = train({**variables, "batch_stats": zero}, prepare(pixels))
        return jax.tree.map(lambda x: x / 0.1, after["batch_stats"])

    @jax.jit
    def losses(variables: Any, pixels: jax.Array, labels: jax.Array) -> jax.Array:
        logits: Any = network.apply(variables, prepare(pixels), train=False)
        return _cross_entropy(logits, labels)

    def evaluate(variables: Any) -> jax.Array:
        size = _STATISTICS_BATCH
        found = [
            statistics(variables, images[i * size : (i + 1) * size])
            for i in range(_STATISTICS_BATCHES)
        ]
        fresh = jax.tree.map(lambda *xs: sum(xs) / len(xs), *found)
        variables = {**variables, "batch_stats": fresh}
        size = _EVALUATION_BATCH
        parts = [
            losses(variables, *(x[i : i + size] for x in held_out))
            for i in range(0, len(held_out[1]), size)
        ]
        of_all = jnp.concatenate(parts)
        return jnp.stack([of_all[0::2].mean(), of_all[1::2].mean()])

    return ReadoutTask(init, loss, sample, evaluate, _nesterov(momentum), loops=False)


# The optimizer of each task, and what makes it.
TASKS: dict[str, tuple[str, Callable[[str | None, float], ReadoutTask]]] = {
    "characters": ("adamw", functools.partial(_characters, 32, 2)),
    "characters-large": ("adamw", functools.partial(_characters, 64, 4)),
    "digits": ("nesterov", functools.partial(_patches, "digits", 4, 32)),
    "cifar100-patches": ("nesterov", functools.partial(_patches, "cifar100", 8, 64)),
    "cifar100-resnet18": ("nesterov", functools.partial(_resnet, 8)),
}
