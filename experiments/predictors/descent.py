"""The optimizers that are compared on a full batch; runs them, chooses their rates."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import plp_optax
from experiments import tuning
from experiments.predictors.problems import PROBLEMS, Problem
from experiments.study import TUNING_SEEDS
from experiments.tuning import OptaxMethod, Tuned

_REFERENCE_STEPS = 1500
Rate = jax.typing.ArrayLike

WINDOW = 11  # updates: Anderson's depth 10
MOMENTA = (0.8, 0.9, 0.95, 0.98, 0.99)
# Multiples of the reciprocal of the largest curvature at the start: two decades.
MULTIPLES = tuple(0.3 * 10 ** (i / 3) for i in range(7))
ADAM_RATES = tuple(1e-3 * 10 ** (i / 3) for i in range(7))
_BETA, _GAMMA = 0.5, 0.9
_ETA, _MU, _K = 0.7, 0.9, 10


def _sgd(rate: Rate, momentum: Rate) -> optax.GradientTransformation:
    return optax.sgd(rate)


def _nesterov(rate: Rate, momentum: Rate) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum, nesterov=True)


def _after(
    base: Callable[[Rate, Rate], optax.GradientTransformation],
    make_link: Callable[..., optax.GradientTransformation],
    *args: Any,
    **kwargs: Any,
) -> Callable[[Rate, Rate], optax.GradientTransformation]:
    return lambda rate, momentum: optax.chain(
        base(rate, momentum), make_link(*args, **kwargs)
    )


_window = plp_optax.anderson
METHODS = {
    "gd": OptaxMethod("gradient descent", _sgd, "gd"),
    "nesterov": OptaxMethod("Nesterov", _nesterov, "nesterov", momenta=MOMENTA),
    "adam": OptaxMethod("Adam", lambda rate, momentum: optax.adam(rate), "adam"),
    "lbfgs": OptaxMethod("L-BFGS", lambda rate, momentum: optax.lbfgs(), "lbfgs"),
    "plp": OptaxMethod("PLP", _after(_sgd, plp_optax.plp), "gd", drift=9 / 8),
    "ema": OptaxMethod(
        "EMA-Nesterov",
        _after(_sgd, plp_optax.ema_nesterov, _BETA, decay=_GAMMA),
        "gd",
        drift=1 / (1 - _BETA),
    ),
    "outer": OptaxMethod(
        "outer Nesterov",
        _after(_sgd, plp_optax.outer_nesterov, _ETA, momentum=_MU, period=_K),
        "gd",
        drift=_ETA / (1 - _MU),
    ),
    "sliding": OptaxMethod(
        "sliding window", _after(_sgd, _window, WINDOW), "gd", drift=None
    ),
    "revert": OptaxMethod(
        "sliding window, revert",
        _after(_sgd, _window, WINDOW, revert=True),
        "gd",
        drift=None,
    ),
    "restarted": OptaxMethod(
        "restarted window",
        _after(_sgd, _window, WINDOW, period=WINDOW),
        "gd",
        drift=None,
    ),
    "restarted-nesterov": OptaxMethod(
        "restarted window on Nesterov",
        _after(_nesterov, _window, WINDOW, period=2 * WINDOW),
        "nesterov",
        momenta=MOMENTA,
        drift=None,
    ),
}


class Descent(NamedTuple):
    """A run.

    Attributes:
      gradients: How many gradients had been taken when each value was found; (steps,).
      gap: Value minus minimum; not finite once it diverged; (steps,).
      drift: Mean length of the emitted updates over that of the base's.
    """

    gradients: np.ndarray
    gap: np.ndarray
    drift: float

    def to(self, gap: float) -> int | None:
        """Gradients until the gap is reached; None if it never is."""
        reached = self.gap <= gap
        return int(self.gradients[reached.argmax()]) if reached.any() else None


class Choice(NamedTuple):
    """The result of a learning rate on the tuning seed.

    Attributes:
      momentum: The best momentum at this rate; 0 for methods without.
      run: The run with it.
      cost: Gradients to the fine gap, to the coarse gap, and the last gap; infinite
        where it never gets there.
    """

    momentum: float
    run: Descent
    cost: tuple[float, ...]


@functools.cache
def _compiled(model: str, method: str, steps: int) -> Any:
    """Maps rates, momenta (both (n,)), a start and data to the course of n runs."""
    loss = PROBLEMS[model](0).loss

    def course(rate: jax.Array, momentum: jax.Array, start: Any, data: Any) -> Any:
        tx = optax.with_extra_args_support(METHODS[method].make(rate, momentum))
        base = METHODS[METHODS[method].base].make(rate, momentum)
        base = optax.with_extra_args_support(base)

        def objective(w: Any) -> jax.Array:
            return loss(w, data)

        def step(carry: Any, _: None) -> Any:
            w, state, base_state = carry
            value, gradient = jax.value_and_grad(objective)(w)
            extra: Any = {}
            if method == "lbfgs":
                extra = {"grad": gradient, "value_fn": objective}
            updates, state = tx.update(gradient, state, w, value=value, **extra)
            if method == "lbfgs":
                evaluations = optax.tree.get(state, "info").num_linesearch_steps
                plain = updates
            else:
                evaluations = 1
                plain, base_state = base.update(gradient, base_state, w)
            lengths = jnp.stack([optax.tree.norm(updates), optax.tree.norm(plain)])
            out = (value, jnp.asarray(evaluations, int), lengths)
            return (optax.apply_updates(w, updates), state, base_state), out

        carry = (start, tx.init(start), base.init(start))
        return jax.lax.scan(step, carry, length=steps)[1]

    return jax.jit(jax.vmap(course, in_axes=(0, 0, None, None)))


@functools.cache
def problem_of(model: str, seed: int) -> tuple[Problem, float]:
    """A problem and its minimum: given, or the lowest value L-BFGS finds."""
    problem = PROBLEMS[model](seed)
    if problem.minimum is not None:
        return problem, problem.minimum
    run = _compiled(model, "lbfgs", _REFERENCE_STEPS)
    values = run(np.ones(1), np.zeros(1), problem.start, problem.data)[0]
    return problem, float(np.nanmin(values))


@functools.cache
def curvature(model: str) -> float:
    """The largest curvature at the start of the tuning seed, by power iteration."""
    problem, _ = problem_of(model, TUNING_SEEDS[0])
    gradient = jax.grad(problem.loss)

    def times(v: Any) -> Any:
        at = (problem.start,)
        return jax.jvp(lambda w: gradient(w, problem.data), at, (v,))[1]

    v = jax.tree.map(
        lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), problem.start
    )
    for _ in range(50):
        v = times(v)
        norm = optax.tree.norm(v)
        v = jax.tree.map(lambda x, norm=norm: x / norm, v)
    return float(norm)


def descend(
    model: str,
    method: str,
    seed: int,
    rates: Any,
    momenta: Any,
    steps: int,
) -> list[Descent]:
    """Runs a method on a problem at several rates and momenta."""
    with jax.enable_x64(True):
        problem, minimum = problem_of(model, seed)
        run = _compiled(model, method, steps)
        settings = np.asarray(rates, float), np.asarray(momenta, float)
        found = run(*settings, problem.start, problem.data)
        values, evaluations, lengths = map(np.asarray, found)
    runs = []
    for v, n, length in zip(values, evaluations, lengths, strict=True):
        # The first value costs no gradient that another method would not take too.
        gradients = np.append(0, np.cumsum(n)[:-1])
        kept = np.isfinite(length).all(axis=1)
        ratio = length[kept, 0].sum() / max(length[kept, 1].sum(), 1e-300)
        runs.append(Descent(gradients, v - minimum, float(ratio)))
    return runs


@functools.cache
def tune(model: str, method: str, steps: int) -> Tuned[Choice]:
    """Chooses the rate and the momentum that reach the fine gap first.

    The grid of rates is continued where the best one is at its edge.
    """
    if method == "lbfgs":  # it has a line search
        first = [1.0]
    elif method == "adam":
        first = list(ADAM_RATES)
    else:
        with jax.enable_x64(True):
            first = [m / curvature(model) for m in MULTIPLES]
    momenta = METHODS[method].momenta
    gaps = PROBLEMS[model](TUNING_SEEDS[0]).gaps

    def cost(run: Descent) -> tuple[float, ...]:
        last = run.gap[-1] if np.isfinite(run.gap[-1]) else np.inf
        counts = (run.to(gap) for gap in reversed(gaps))
        return (*(np.inf if n is None else n for n in counts), last)

    def choices(rates: list[float]) -> Iterator[Choice]:
        grid = list(itertools.product(rates, momenta))
        tried, tried_momenta = zip(*grid, strict=True)
        runs = descend(model, method, TUNING_SEEDS[0], tried, tried_momenta, steps)
        costs = list(map(cost, runs))
        for i in range(0, len(grid), len(momenta)):
            of_rate = range(i, i + len(momenta))
            best = min(of_rate, key=costs.__getitem__)
            yield Choice(grid[best][1], runs[best], costs[best])

    return tuning.tune(
        first, choices, lambda choice: choice.cost, is_continued=len(first) > 1
    )


def drift_of(model: str, method: str, steps: int) -> float:
    """The factor that turns a method's learning rate into its matched rate."""
    drift = METHODS[method].drift
    assert not callable(drift)  # of a schedule, which descents do not have
    return tune(model, method, steps).run.run.drift if drift is None else drift
