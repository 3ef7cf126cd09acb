"""A run at a constant rate, what is read out of it, and runs that decay from it.

The run is cut into blocks of steps. A decay over the last part of a horizon starts from
the constant-rate run's state at that place, with the same batches as that run has.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import plp_optax
from experiments.readouts.tasks import ReadoutTask

BLOCKS = 80
HORIZONS = (10, 20, 40, 80)  # in blocks
POWERS = (4, 8, 16, 32)
PARTS = (0.1, 0.2, 0.5, 1.0)  # of a horizon, over which the rate falls
WINDOWS = (0.1, 0.2, 0.3, 0.5)  # parts that are averaged
BIAS_POWERS = (0.2, 0.4)  # of BEMA's correction
BLEND = 0.3  # weight of the average
CONSTANT = 21  # read-outs of the run at a constant rate, at each horizon
_BLENDED = 16  # its power
_WARMUP = 1 / 40  # part of the longest horizon

# The learning rate over its peak, by the part of the decay that is done: the names are
# those of plp_optax.merge.
SHAPES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - np.sqrt(x),
    "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
}


_BEMA = {
    f"bema-{power}": plp_optax.bema(bias_power=power, keep_initial=False)
    for power in BIAS_POWERS
}
_AVERAGES = {str(power): plp_optax.tail_average(power) for power in POWERS} | _BEMA


class _Carry(NamedTuple):
    """The state that a step changes."""

    variables: Any
    opt_state: Any
    averages: dict[str, Any]  # states of _AVERAGES


def _make_step(task: ReadoutTask) -> Callable[[_Carry, jax.Array, jax.Array], _Carry]:
    def step(carry: _Carry, rate: jax.Array, key: jax.Array) -> _Carry:
        variables = carry.variables
        params = variables["params"]

        def loss(params: Any) -> jax.Array:
            return task.loss({**variables, "params": params}, task.sample(key))

        gradient = jax.grad(loss)(params)
        updates, opt_state = task.direction.update(gradient, carry.opt_state, params)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        averages = {
            name: _AVERAGES[name].update(updates, average, params)[1]
            for name, average in carry.averages.items()
        }
        params = optax.apply_updates(params, updates)
        return _Carry({**variables, "params": params}, opt_state, averages)

    return step


@functools.cache
def _make_block(task: ReadoutTask) -> Callable[..., tuple[_Carry, Any]]:
    """Returns ``block(carry, rates, keys)``: the carry, the mean of the parameters."""
    step = _make_step(task)

    def add(mean: Any, carry: _Carry, count: int) -> Any:
        params = carry.variables["params"]
        return jax.tree.map(lambda m, p: m + p / count, mean, params)

    if task.loops:

        @jax.jit
        def block(carry: _Carry, rates: jax.Array, keys: jax.Array) -> Any:
            def advance(carry_and_mean: Any, given: Any) -> Any:
                carry = step(carry_and_mean[0], *given)
                return (carry, add(carry_and_mean[1], carry, len(rates))), None

            zero = jax.tree.map(jnp.zeros_like, carry.variables["params"])
            return jax.lax.scan(advance, (carry, zero), (rates, keys))[0]

        return block

    one_step, one_add = jax.jit(step), jax.jit(add)

    def unrolled(carry: _Carry, rates: jax.Array, keys: jax.Array) -> Any:
        mean = jax.tree.map(jnp.zeros_like, carry.variables["params"])
        for rate, key in zip(rates, keys, strict=True):
            carry = one_step(carry, rate, key)
            mean = one_add(mean, carry, len(rates))
        return carry, mean

    return unrolled


class Readout(NamedTuple):
    """The losses of some parameters.

    Attributes:
      step: Steps that led to them.
      readout: Which parameters: ``last``, ``power-8``, ``decay-linear-0.2``.
      choice: Loss on the first half of the held-out data, to choose by; in nats.
      loss: Loss on the other half, to report.
    """

    step: int
    readout: str
    choice: float
    loss: float


def run(
    task: ReadoutTask,
    *,
    rate: float,
    seed: int,
    steps: int,
    shapes: Sequence[str] = tuple(SHAPES),
    parts: Sequence[float] = PARTS,
    exponent: float = 0.0,
) -> Iterator[Readout]:
    """Trains at a constant rate, and yields all losses.

    Args:
      task: The network, its data and its optimizer.
      rate: The rate at the end of the warm-up.
      seed: Seed of the initial parameters and the batches.
      steps: Steps of the longest horizon; a multiple of ``BLOCKS``.
      shapes: Shapes of the decays that are trained; names of ``SHAPES``.
      parts: Parts of a horizon over which the rate falls.
      exponent: After the warm-up the rate falls as the step to the power of minus this;
        by default it stays.
    """
    block = _make_block(task)
    size = steps // BLOCKS
    warmups = (np.arange(steps) + 1) / (_WARMUP * steps)
    base = np.minimum(warmups, np.maximum(warmups, 1) ** -exponent)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), steps)

    def advance(carry: _Carry, start: int, stop: int, factors: Any) -> Any:
        """Trains from block to block; yields the carry and the block's mean."""
        rates = jnp.asarray(rate * base[start * size : stop * size] * factors)
        for i in range(stop - start):
            place = slice(i * size, (i + 1) * size)
            own = keys[start * size + i * size : start * size + (i + 1) * size]
            carry, mean = block(carry, rates[place], own)
            yield carry, mean

    def losses(carry: _Carry, params: Any, stop: int, name: str) -> Readout:
        found = task.evaluate({**carry.variables, "params": params})
        return Readout(stop * size, name, *map(float, found))

    variables = task.init(jax.random.key(seed))
    params = variables["params"]
    averages = {name: average.init(params) for name, average in _AVERAGES.items()}
    carries = [_Carry(variables, task.direction.init(params), averages)]
    means: list[Any] = []
    ends: list[Any] = []
    for carry, mean in advance(carries[0], 0, BLOCKS, np.ones(steps)):
        carries.append(carry)
        means.append(mean)
        ends.append(carry.variables["params"])

    for stop in HORIZONS:
        carry = carries[stop]
        for name, readout in _readouts(carry, params, means[:stop], ends[:stop]):
            yield losses(carry, readout, stop, name)
        for shape in shapes:
            for part in parts:
                start = stop - round(part * stop)
                part_steps = (stop - start) * size
                factors = SHAPES[shape](np.arange(part_steps) / part_steps)
                *_, (end, _) = advance(carries[start], start, stop, factors)
                last = end.variables["params"]
                yield losses(end, last, stop, f"decay-{shape}-{part}")
                average = end.averages[str(_BLENDED)]
                blend = plp_optax.averaged_params(average, last, BLEND)
                yield losses(end, blend, stop, f"blend-{shape}-{part}")


def _readouts(
    carry: _Carry, initial: Any, means: Sequence[Any], ends: Sequence[Any]
) -> Iterator[tuple[str, Any]]:
    """The read-outs of a run at a constant rate, by name."""
    last = carry.variables["params"]
    yield "last", last
    for power in POWERS:
        average = carry.averages[str(power)]
        yield f"power-{power}", plp_optax.averaged_params(average, last)
    for name in _BEMA:
        yield name, plp_optax.bema_params(carry.averages[name], last, initial)
    count = len(means)
    for part in WINDOWS:
        yield f"merge-linear-{part}", plp_optax.merge(means, over=part)
    for shape in ("1-sqrt", "cosine"):
        yield f"merge-{shape}-0.2", plp_optax.merge(means, decay=shape, over=0.2)
    # Checkpoints in place of the means between them.
    for part in (0.1, 0.2):
        yield f"raw-linear-{part}", plp_optax.merge(ends, over=part)
    for decay in (0.7, 0.85):  # by block
        weights = decay ** np.arange(count)[::-1]
        yield f"ema-{decay}", _combine(weights / weights.sum(), means)
    # The line through two consecutive averages, as in Extra-Merge (arXiv 2605.26484).
    for part in (0.1, 0.2):
        length = round(part * count)
        window = np.zeros((2, count))
        window[0, count - 2 * length : count - length] = 1 / length
        window[1, count - length :] = 1 / length
        for step in (0.25, 0.5):
            weights = window[1] + step * (window[1] - window[0])
            yield f"extrapolated-{part}-{step}", _combine(weights, means)


def _combine(weights: np.ndarray, trees: Sequence[Any]) -> Any:
    """The linear combination of trees."""
    pairs = [(w, t) for w, t in zip(weights, trees, strict=True) if w]

    def add(*leaves: jax.Array) -> jax.Array:
        terms = [w * x for (w, _), x in zip(pairs, leaves, strict=True)]
        return jnp.asarray(sum(terms), leaves[0].dtype)

    return jax.tree.map(add, *(t for _, t in pairs))
