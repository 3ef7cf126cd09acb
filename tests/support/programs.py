"""A small data set and small networks, and programs that tests share."""

import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from models.layers import Layers
from training import data, recipe
from training.engine import parallel
from training.engine.engine import Engine
from training.engine.feed import Host, Resident
from training.engine.step import Preprocess, make_train_step
from training.run.callbacks import Callback
from training.run.checkpoints import copy_to_host
from training.settings import config as config_lib

CLASSES = 10


def _examples(count, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)
    return data.Examples(images, (np.arange(count) % CLASSES).astype(np.int32))


DATASET = data.Dataset(
    name="made",
    num_classes=CLASSES,
    train=_examples(64, 0),
    validation=_examples(22, 1),
    test=_examples(22, 2),
    mean=np.array([0.5], np.float32),
    std=np.array([0.3], np.float32),
    crop_padding=1,
    flips=False,
    label_names=tuple(map(str, range(CLASSES))),
)


class Linear(nn.Module):
    """One dense layer: what is cheapest to compile."""

    @nn.compact
    def __call__(self, x, train):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(CLASSES, dtype=x.dtype, param_dtype=wide)(x).astype(wide)


class Normalised(nn.Module):
    """Two dense layers and batch normalisation; of white images it makes NaN."""

    axis_name: str | None = parallel.AXIS

    @nn.compact
    def __call__(self, x, train):
        layers = Layers(train, x.dtype, self.axis_name)
        x = x.reshape(x.shape[0], -1)
        white = (x > 1.6).all(axis=1, keepdims=True)  # (1 - mean) / std is 1.67
        x = layers.dense(jnp.where(white, jnp.nan, x), "hidden", 8)
        x = layers.dense(nn.relu(layers.norm(x, "norm")), "head", CLASSES)
        return x.astype(layers.param_dtype)


class Parameters(Callback):
    """Keeps the parameters after every call."""

    def __init__(self):
        self.seen = []

    def on_call(self, state):
        self.seen.append(copy_to_host(state.params))


def momentum():
    """SGD with weight decay and momentum, as `optax` has it."""
    return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.05, momentum=0.9))


def make(
    module=None,
    tx=None,
    *,
    dataset=DATASET,
    batch_size=16,
    steps_per_call=1,
    host=False,
    dtype=jnp.float32,
    augment=False,
    precise_bn=0,
    most_skipped=1,
    **options,
):
    """An engine of a small network, without a configuration."""
    module = Normalised() if module is None else module
    tx = optax.with_extra_args_support(momentum() if tx is None else tx)
    feed = (
        Host(dataset.train, batch_size)
        if host
        else Resident(dataset.train, batch_size, steps_per_call)
    )
    preprocess = Preprocess(dataset, dtype, augment)
    step = make_train_step(module, tx, preprocess, most_skipped=most_skipped, **options)
    return Engine(
        module,
        tx,
        preprocess,
        feed,
        step,
        batch_size=batch_size,
        precise_bn=precise_bn,
        most_skipped=most_skipped,
    ).compile()


def train_epoch(engine, state, epoch=0, seed=0):
    """The state after an epoch."""
    for call in engine.train_steps(state, seed, epoch):
        state = call.state
    return state


# What ends a run before its last epoch.
ENDINGS = ("early_stopping", "stop_accuracy", "plateau_drops")

_build = recipe.build
_built: dict[str, Engine] = {}


def build(config, dataset, source=None):
    """As `recipe.build`, but compiles equal programs only once in a process."""
    if source is not None:
        return _build(config, dataset, source)
    fields = config_lib.identity(config) | {"on_nonfinite": config.on_nonfinite}
    for name in ("max_steps", "test_each_epoch", *ENDINGS):
        fields.pop(name, None)
    if not recipe.depends_on_seed(config):
        del fields["seed"]
    key = json.dumps(fields)
    if key not in _built:
        _built[key] = _build(config, dataset)
    return _built[key]


def forget():
    """Drops the programs that `build` has kept."""
    _built.clear()
