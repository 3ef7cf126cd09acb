"""The arms of the study ``sequential``: how each learns a stream, and its tuning.

Each arm has one number that is chosen: a learning rate, the variance of the measurement
noise, or a penalty. All arms get the same budget for it: five values, on three seeds
that are not reported.
"""

import functools
import math
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from sklearn.kernel_ridge import KernelRidge

from experiments import tuning
from experiments.sequential import learning, streams
from experiments.sequential.learning import Growth
from experiments.sequential.streams import Stream
from experiments.study import TUNING_SEEDS
from experiments.tuning import Tuned
from models import ran

EVERY = 10  # samples between two points of a curve
_EVERY_FIT = 50  # the same for kernel ridge, which is fitted again at each point


class StreamSetup(NamedTuple):
    """The noise of a stream, and when networks grow on it."""

    noise_variance: float
    growth: Growth


SETUPS = {
    "mackey-glass-17": StreamSetup(0.0, Growth()),
    # Thresholds of 3 standard deviations of the noise, and of a little more than the
    # distance that it puts between two equal inputs of seven lags.
    "mackey-glass-17-noisy": StreamSetup(0.004, Growth(epsilon=0.2, delta_min=0.3)),
}
_CAPACITY = 100  # units


def load(setup_name: str, seed: int) -> Stream:
    """The stream of a setup; equal seeds give equal streams."""
    return streams.draw(seed, noise_variance=SETUPS[setup_name].noise_variance)


class Curve(NamedTuple):
    """How a stream was learned.

    Attributes:
      samples: How many samples were seen, at each point.
      error: The mean squared test error there, divided by the test targets' variance.
      units: Units, or support points, there.
      refused: Samples that found no unit left to allocate.
    """

    samples: np.ndarray
    error: np.ndarray
    units: np.ndarray
    refused: int

    @property
    def final_error(self) -> float:
        """The mean over the last tenth of the stream; infinite if it is not finite."""
        is_last = self.samples > 0.9 * self.samples[-1]
        error = float(self.error[is_last].mean())
        return error if math.isfinite(error) else math.inf


class Algorithm(NamedTuple):
    """A way to learn.

    Attributes:
      label: Its name in reports.
      learn: Maps the name of a setup, a seed and the chosen number to a curve.
      chosen: Meaning of the number: ``learning rate``.
      candidates: Its values.
      base: The name of the one that it is compared with, if there is one.
    """

    label: str
    learn: Callable[[str, int, float], Curve]
    chosen: str
    candidates: tuple[float, ...]
    base: str | None = None


@functools.cache
def tune(name: str, setup_name: str) -> Tuned[float]:
    """Chooses an arm's number, by its mean final error over ``TUNING_SEEDS``."""
    algorithm = ALGORITHMS[name]
    return tuning.tune(
        algorithm.candidates,
        lambda values: [
            fmean(algorithm.learn(setup_name, s, v).final_error for s in TUNING_SEEDS)
            for v in values
        ],
        lambda error: error,
    )


def learn(name: str, setup_name: str, seed: int) -> tuple[Curve, Tuned[float]]:
    """Learns a stream with the chosen number; says what was chosen, too."""
    tuned = tune(name, setup_name)
    return ALGORITHMS[name].learn(setup_name, seed, tuned.value), tuned


# -- Networks --------------------------------------------------------------------------


@functools.cache
def _rule(kind: str, value: float) -> learning.Rule:
    """Rules, once each, so that each compiles once."""
    if kind == "ekf":
        return learning.ekf_rule(measurement_noise=value)
    optimizer = {"sgd": optax.sgd, "adam": optax.adam}[kind]
    return learning.gradient_rule(optimizer(value))


def _learn_growing(kind: str, setup_name: str, seed: int, value: float) -> Curve:
    stream = load(setup_name, seed)
    network = ran.create(_CAPACITY, stream.inputs.shape[1])
    return _follow(network, _rule(kind, value), stream, SETUPS[setup_name].growth)


def _learn_fixed(kind: str, setup_name: str, seed: int, value: float) -> Curve:
    """A network with as many units as RAN-EKF ends with on the same stream."""
    stream = load(setup_name, seed)
    units = _grown_units(setup_name, seed)
    network = fixed_network(stream.inputs, units, _CAPACITY, seed)
    return _follow(network, _rule(kind, value), stream, None)


@functools.cache
def _grown_units(setup_name: str, seed: int) -> int:
    value = tune("ran-ekf", setup_name).value
    return int(_learn_growing("ekf", setup_name, seed, value).units[-1])


def fixed_network(
    inputs: np.ndarray, units: int, capacity: int, seed: int
) -> ran.GrowingNetwork:
    """A network with all its units from the start, and weights 0.

    Centres are inputs of the stream, drawn at random. All units are half as wide as the
    median distance of inputs; this did best on the seeds for tuning, for all rules.

    Args:
      inputs: Shape (n, inputs), of the stream to come: the network sees them early.
      units: How many, at most n.
      capacity: Pads the arrays, as in the networks that grow.
      seed: Seed of the draw.
    """
    drawn = np.random.default_rng(seed).choice(len(inputs), units, replace=False)
    centers = np.zeros((capacity, inputs.shape[1]), np.float32)
    centers[:units] = inputs[drawn]
    width = np.median(np.sqrt(_squared_distances(inputs))) / 2
    return ran.GrowingNetwork(
        ran.Params(jnp.zeros(()), jnp.zeros(capacity), jnp.asarray(centers)),
        widths=jnp.full(capacity, width, jnp.float32),
        active=jnp.arange(capacity) < units,
    )


def _squared_distances(inputs: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs of different inputs, [pairs]."""
    i, j = np.triu_indices(len(inputs), 1)
    return ((inputs[i] - inputs[j]) ** 2).sum(axis=1)


def _follow(
    network: ran.GrowingNetwork,
    rule: learning.Rule,
    stream: Stream,
    growth: Growth | None,
) -> Curve:
    inputs, targets, tests, _ = (jnp.asarray(x, jnp.float32) for x in stream)
    state = learning.start(network, rule)
    state, trace = learning.learn(
        state, inputs, targets, rule, growth=growth, watched=tests
    )
    watched = np.asarray(trace.watched, np.float64)
    samples = np.arange(EVERY, len(watched) + 1, EVERY)
    predictions, units = watched[samples - 1], np.asarray(trace.units)[samples - 1]
    error = _error(predictions, stream)
    return Curve(samples, error, units, int(state.refused))


def _error(predictions: np.ndarray, stream: Stream) -> np.ndarray:
    """Normalised test errors of predictions, [..., test samples]."""
    squares = (predictions - stream.test_targets) ** 2
    return squares.mean(axis=-1) / stream.test_targets.var()


# -- The reference ---------------------------------------------------------------------


def _learn_kernel_ridge(setup_name: str, seed: int, value: float) -> Curve:
    """Kernel ridge regression, fitted again to all samples seen, at each point.

    The kernel is Gaussian, and as wide as the median distance of the stream's inputs.
    """
    stream = load(setup_name, seed)
    mean = stream.targets[0]
    gamma = 1 / float(np.median(_squared_distances(stream.inputs)))
    model = KernelRidge(alpha=value, kernel="rbf", gamma=gamma)
    samples = np.arange(_EVERY_FIT, len(stream.targets) + 1, _EVERY_FIT)
    fits = []
    for n in samples:
        model.fit(stream.inputs[:n], stream.targets[:n] - mean)
        fits.append(mean + model.predict(stream.test_inputs))
    return Curve(samples, _error(np.stack(fits), stream), samples, 0)


_RATES = (0.02, 0.05, 0.1, 0.2, 0.4)
_NOISES = (0.001, 0.01, 0.1, 1.0, 10.0)
_RATE, _NOISE = "learning rate", "measurement noise"
ALGORITHMS = {
    "ran-lms": Algorithm("RAN-LMS", partial(_learn_growing, "sgd"), _RATE, _RATES),
    "ran-ekf": Algorithm(
        "RAN-EKF", partial(_learn_growing, "ekf"), _NOISE, _NOISES, "ran-lms"
    ),
    "fixed-sgd": Algorithm(
        "SGD, fixed network", partial(_learn_fixed, "sgd"), _RATE, _RATES
    ),
    "fixed-adam": Algorithm(
        "Adam, fixed network",
        partial(_learn_fixed, "adam"),
        _RATE,
        (0.0003, 0.001, 0.003, 0.01, 0.03),
        "fixed-sgd",
    ),
    "fixed-ekf": Algorithm(
        "EKF, fixed network", partial(_learn_fixed, "ekf"), _NOISE, _NOISES, "fixed-sgd"
    ),
    "kernel-ridge": Algorithm(
        "kernel ridge (reference)",
        _learn_kernel_ridge,
        "penalty",
        (1e-8, 1e-6, 1e-4, 1e-2, 1.0),
    ),
}
