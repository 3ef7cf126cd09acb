"""Variables of networks: their shapes, and seeded values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import models
import plp_optax


@functools.cache
def shapes_of(network, shape=(1, 32, 32, 3)):
    """The variables as shapes and dtypes, without computing them."""
    images = jnp.zeros(shape)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))


def filled(network, shape):
    """Variables with seeded values of a sensible size; quicker than `init`."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1] == "kernel":
            bound = math.prod(leaf.shape[:-1]) ** -0.5
            return rng.uniform(-bound, bound, leaf.shape).astype(leaf.dtype)
        if path[-1] == "positions":
            return rng.uniform(-1, 1, leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1] in ("scale", "var"), leaf.dtype)

    flat = traverse_util.flatten_dict(shapes_of(network, shape))
    return traverse_util.unflatten_dict({k: fill(k, v) for k, v in flat.items()})


def paths(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def layer_names(name, rule):
    """The layers of a network of width 8, by a rule."""
    network = models.create(name, 10, width=8)
    return plp_optax.layer_names(shapes_of(network, (1, 8, 8, 1))["params"], rule)
