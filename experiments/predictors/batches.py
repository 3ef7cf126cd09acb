"""Training on small batches, with a method after a base optimizer."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import plp_optax
from experiments import tuning
from experiments.predictors import characters
from experiments.study import TUNING_SEEDS
from experiments.tuning import OptaxMethod, Tuned

_WARMUP, _LAST_RATE = 0.05, 0.1  # parts of the steps, of the peak
_BETA, _GAMMA = 0.5, 0.95
_ETA, _MU, _K = 0.7, 0.5, 10
_TAIL = 0.75  # where the average begins
_B2, _WEIGHT_DECAY = 0.99, 0.01  # of AdamW
_MUON_RMS = 0.2  # of Muon's updates, about that of Adam's (arXiv 2502.16982)
_GPA_DECAY = 0.974  # the paper's for DiLoCo with four inner steps
_SCHEDULE_FREE = 0.9
_POINTS = 10  # of a curve


class BatchSetup(NamedTuple):
    """A network, its base optimizer, and how its rates are tuned.

    Attributes:
      part: ``init``, ``batch``, ``loss``, ``evaluate`` and ``data`` of a network.
      direction: The base optimizer at a learning rate of -1.
      rates: Peak learning rates to try first, in equal ratios.
      tuning_seeds: How many of ``TUNING_SEEDS`` they are tried on.
      lanes: How many runs are computed at the same time.
    """

    part: Any
    direction: optax.GradientTransformation
    rates: tuple[float, ...]
    tuning_seeds: int
    lanes: int


class Course(NamedTuple):
    """A run.

    Attributes:
      losses: On held-out data after equal parts of the steps, the last one at the end;
        (points,).
      drift: Mean length of the emitted updates over that of the base's.
    """

    losses: np.ndarray
    drift: float

    @property
    def last(self) -> float:
        """The last loss; infinite if it is not finite."""
        return float(self.losses[-1]) if np.isfinite(self.losses[-1]) else np.inf


def _published(part: Any) -> jax.Array:
    """The beta of EMA-Nesterov in record 39 of modded-nanogpt's track 3.

    0.6 times the learning rate over its peak, and 0 at the start and at the end. There
    the base is Muon, and the decay 0.99.
    """
    cosine = (1 + jnp.cos(jnp.pi * (part - _WARMUP) / (1 - _WARMUP))) / 2
    rate = _LAST_RATE + (1 - _LAST_RATE) * cosine
    return jnp.where((part >= 0.16) & (part < 0.76), 0.6 * rate, 0.0)


def _tail(steps: int) -> optax.GradientTransformation:
    return plp_optax.tail_average(0.0, start=round(_TAIL * steps))


def _nothing(steps: int) -> optax.GradientTransformation:
    return optax.identity()


def _bema(start: float = 0.0, **kwargs: Any) -> Callable[[int], Any]:
    return lambda steps: plp_optax.bema(start=round(start * steps), **kwargs)


def _lookahead(steps: int) -> optax.GradientTransformation:
    return plp_optax.lookahead(5, 0.5)


def _gpa(steps: int) -> optax.GradientTransformation:
    return plp_optax.gpa(decay=_GPA_DECAY)


def _in_place_of_the_base(
    make: Callable[[jax.Array, int], optax.GradientTransformation],
) -> Callable[[int], Any]:
    """A link that is an optimizer at the step's rate, and ignores the base's update."""

    def make_link(steps: int) -> optax.GradientTransformationExtraArgs:
        def update(
            updates: Any, state: Any, params: Any, *, gradient: Any, rate: jax.Array
        ) -> Any:
            return make(rate, steps).update(gradient, state, params)

        init = make(jnp.zeros(()), steps).init
        return optax.GradientTransformationExtraArgs(init, update)

    return make_link


def _schedule_free(rate: jax.Array, steps: int) -> optax.GradientTransformation:
    base = optax.adamw(rate, 0.0, _B2, weight_decay=_WEIGHT_DECAY)
    return optax.contrib.schedule_free(base, rate, b1=_SCHEDULE_FREE)


def _pace(rate: jax.Array, steps: int) -> optax.GradientTransformation:
    return plp_optax.pace(rate, b2=_B2, weight_decay=_WEIGHT_DECAY)


def _adamw(
    b1: float, make_link: Callable[[int], optax.GradientTransformation] = _nothing
) -> Callable[[int], Any]:
    """AdamW with momentum of another length, and a method after it."""
    return _in_place_of_the_base(
        lambda rate, steps: optax.chain(
            optax.adamw(rate, b1, _B2, weight_decay=_WEIGHT_DECAY), make_link(steps)
        )
    )


def _muon(
    make_link: Callable[[int], optax.GradientTransformation] = _nothing,
    *,
    momentum: float = 0.95,
) -> Callable[[int], Any]:
    """Muon on the matrices of the blocks and AdamW on the rest, and a method after it.

    One rate serves both, as their updates have about the same root mean square.
    """

    def is_hidden(path: Any, leaf: Any) -> Any:
        names = [getattr(key, "key", None) for key in path]
        if "blocks" in names and names[-1] != "scales":
            return optax.contrib.MuonDimensionNumbers()
        return None

    return _in_place_of_the_base(
        lambda rate, steps: optax.chain(
            optax.contrib.muon(
                rate,
                beta=momentum,
                weight_decay=_WEIGHT_DECAY,
                adam_b2=_B2,
                adam_weight_decay=_WEIGHT_DECAY,
                muon_weight_dimension_numbers=functools.partial(
                    jax.tree.map_with_path, is_hidden
                ),
                consistent_rms=_MUON_RMS,
            ),
            make_link(steps),
        )
    )


def _published_ema(decay: float) -> Callable[[int], optax.GradientTransformation]:
    return lambda steps: plp_optax.ema_nesterov(
        lambda count: _published(count / steps), decay=decay
    )


def _long_nesterov(rate: jax.Array, steps: int) -> optax.GradientTransformation:
    """Nesterov momentum as long as GPA's, after the second moment as there."""
    return optax.chain(
        optax.scale_by_adam(b1=0.0, b2=_B2),
        optax.add_decayed_weights(_WEIGHT_DECAY),
        optax.trace(_GPA_DECAY, nesterov=True),
        optax.scale_by_learning_rate(rate * (1 - _GPA_DECAY)),
    )


SETUPS = {
    "characters": BatchSetup(
        characters,
        optax.chain(
            optax.scale_by_adam(b2=_B2), optax.add_decayed_weights(_WEIGHT_DECAY)
        ),
        tuple(3e-4 * 10 ** (i / 4) for i in range(9)),
        tuning_seeds=3,
        lanes=9,
    ),
}
_constant = functools.partial(OptaxMethod, last_rate=1.0)
_average = functools.partial(_constant, is_average=True)


def _published_drift(part: np.ndarray) -> np.ndarray:
    return 1 / (1 - np.asarray(_published(part)))


METHODS = {
    "base": OptaxMethod("AdamW", _nothing, "base"),
    "plp": OptaxMethod("PLP", lambda steps: plp_optax.plp(), "base", drift=9 / 8),
    "ema": OptaxMethod(
        "EMA-Nesterov",
        lambda steps: plp_optax.ema_nesterov(
            optax.linear_schedule(_BETA, 0.0, steps), decay=_GAMMA
        ),
        "base",
        drift=lambda part: 1 / (1 - _BETA * (1 - part)),
    ),
    "ema-published": OptaxMethod(
        "EMA-Nesterov, published schedule",
        _published_ema(_GAMMA),
        "base",
        drift=_published_drift,
    ),
    "outer": OptaxMethod(
        "outer Nesterov",
        lambda steps: plp_optax.outer_nesterov(_ETA, momentum=_MU, period=_K),
        "base",
        drift=_ETA / (1 - _MU),
    ),
    "lookahead": OptaxMethod("Lookahead", _lookahead, "base", drift=0.5),
    "tail": OptaxMethod("tail average", _tail, "base", is_average=True),
    "gated": OptaxMethod(
        "Anderson, noise gate",
        lambda steps: plp_optax.anderson(10, period=20, min_signal=0.5),
        "base",
        drift=None,
    ),
    "to-zero": OptaxMethod("AdamW, rate to 0", _nothing, "to-zero", last_rate=0.0),
    "constant": _constant("AdamW, constant rate", _nothing, "constant"),
    "tail-constant": _average("tail average, constant rate", _tail, "constant"),
    "gpa": OptaxMethod("GPA", _gpa, "base", is_average=True),
    "gpa-constant": _average("GPA, constant rate", _gpa, "constant"),
    "bema": _average("BEMA", _bema(), "constant"),
    "bema-tail": _average("BEMA, last quarter", _bema(_TAIL), "constant"),
    "ema-of-bema": _average(
        "BEMA's average, not corrected", _bema(bias_power=None), "constant"
    ),
    "pace": _average("PACE", _in_place_of_the_base(_pace), "constant", drift=None),
    # Averages that are followed have momentum in them: what its length alone does.
    "b1-0.5": OptaxMethod("AdamW, b1 0.5", _adamw(0.5), "b1-0.5"),
    "b1-0.5-lookahead": OptaxMethod(
        "Lookahead, b1 0.5", _adamw(0.5, _lookahead), "b1-0.5", drift=0.5
    ),
    "b1-0.5-tail": _average(
        "tail average, b1 0.5, constant rate", _adamw(0.5, _tail), "b1-0.5-constant"
    ),
    "b1-0.5-constant": _constant(
        "AdamW, b1 0.5, constant rate", _adamw(0.5), "b1-0.5-constant"
    ),
    **{
        f"b1-{b1}": OptaxMethod(f"AdamW, b1 {b1}", _adamw(b1), f"b1-{b1}")
        for b1 in (0.7, 0.95, 0.975)
    },
    "nesterov": OptaxMethod(
        "AdamW, Nesterov momentum 0.974",
        _in_place_of_the_base(_long_nesterov),
        "nesterov",
    ),
    "muon": OptaxMethod("Muon", _muon(), "muon"),
    "muon-ema": OptaxMethod(
        "EMA-Nesterov on Muon, as published",
        _muon(_published_ema(0.99)),
        "muon",
        drift=_published_drift,
    ),
    # Whether the length of Muon's momentum explains what EMA-Nesterov gains.
    "muon-0.9": OptaxMethod("Muon, momentum 0.9", _muon(momentum=0.9), "muon-0.9"),
    "muon-0.98": OptaxMethod("Muon, momentum 0.98", _muon(momentum=0.98), "muon-0.98"),
    "muon-constant": _constant("Muon, constant rate", _muon(), "muon-constant"),
    "muon-tail": _average(
        "tail average on Muon, constant rate", _muon(_tail), "muon-constant"
    ),
    "plain": _constant("AdamW without momentum, constant rate", _adamw(0.0), "plain"),
    "plain-tail": _average(
        "tail average without momentum, constant rate", _adamw(0.0, _tail), "plain"
    ),
    "plain-gpa": _average(
        "GPA without momentum, constant rate", _adamw(0.0, _gpa), "plain"
    ),
    "schedule-free": _average(
        "schedule-free",
        _in_place_of_the_base(_schedule_free),
        "plain",
        drift=1 - _SCHEDULE_FREE / 2,
    ),
}


def multipliers(
    method: str, drift: float | Callable[[np.ndarray], Any], steps: int
) -> np.ndarray:
    """A method's warm-up and half a cosine, times a drift: (steps,)."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, round(_WARMUP * steps), steps, METHODS[method].last_rate
    )
    part = np.arange(steps) / steps
    factor = drift(part) if callable(drift) else drift
    # The first step would have no rate.
    return np.asarray(jax.vmap(schedule)(jnp.arange(1, steps + 1))) * factor


def _make_step(setup: BatchSetup, method: str, steps: int) -> Any:
    """A carry to begin with, a step ``(carry, rate, key, data)``, an evaluation."""
    part, base = setup.part, setup.direction
    link = optax.with_extra_args_support(METHODS[method].make(steps))

    def begin(seed: jax.Array) -> Any:
        params = part.init(jax.random.key(seed))
        return params, base.init(params), link.init(params), jnp.zeros(2)

    def step(carry: Any, rate: jax.Array, key: jax.Array, data: Any) -> Any:
        params, base_state, link_state, lengths = carry
        gradient = jax.grad(part.loss)(params, part.batch(data, key))
        plain, base_state = base.update(gradient, base_state, params)
        plain = jax.tree.map(lambda u: -rate * u, plain)
        updates, link_state = link.update(
            plain, link_state, params, gradient=gradient, rate=rate
        )
        lengths += jnp.stack([optax.tree.norm(updates), optax.tree.norm(plain)])
        params = optax.apply_updates(params, updates)
        return params, base_state, link_state, lengths

    def evaluate(carry: Any, data: Any) -> jax.Array:
        params, _, link_state, _ = carry
        if METHODS[method].is_average:
            params = plp_optax.evaluation_params(link_state, params)
        return part.evaluate(params, data)

    return begin, step, evaluate


@functools.cache
def _compiled(name: str, method: str, steps: int) -> Any:
    """Runs in parallel, compiled as one program."""
    begin, step, evaluate = _make_step(SETUPS[name], method, steps)

    def course(rate: jax.Array, seed: jax.Array, multipliers: Any, data: Any) -> Any:
        def advance(carry: Any, given: Any) -> Any:
            multiplier, key = given
            return step(carry, rate * multiplier, key, data), None

        def section(carry: Any, given: Any) -> Any:
            carry, _ = jax.lax.scan(advance, carry, given)
            return carry, evaluate(carry, data)

        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), steps)
        given = (multipliers.reshape(_POINTS, -1), keys.reshape(_POINTS, -1))
        carry, losses = jax.lax.scan(section, begin(seed), given)
        return losses, carry[-1]

    return jax.jit(jax.vmap(course, in_axes=(0, 0, None, None)))


@functools.cache
def _data(name: str) -> Any:
    return SETUPS[name].part.data()


def courses(
    name: str,
    method: str,
    rates: Any,
    seeds: Any,
    steps: int,
    drift: float | Callable[[np.ndarray], Any] = 1.0,
) -> list[Course]:
    """Trains at some rates and seeds, each rate with the seed in its place."""
    lanes = SETUPS[name].lanes
    run = _compiled(name, method, steps)
    given = np.asarray(rates, np.float32), np.asarray(seeds, np.uint32)
    found = []
    for i in range(0, len(given[0]), lanes):
        # Lanes without a run of their own repeat the first one.
        rest = [np.resize(x[i : i + lanes], lanes) for x in given]
        losses, lengths = run(*rest, multipliers(method, drift, steps), _data(name))
        found += list(zip(np.asarray(losses), np.asarray(lengths), strict=True))
    return [
        Course(losses, float(a / max(b, 1e-30)))
        for losses, (a, b) in found[: len(given[0])]
    ]


@functools.cache
def tune(name: str, method: str, steps: int) -> Tuned[list[Course]]:
    """Chooses the rate with the lowest mean of the last losses of the tuning seeds.

    The grid is continued where the best one is at its edge.
    """
    setup = SETUPS[name]
    seeds = TUNING_SEEDS[: setup.tuning_seeds]

    def run(rates: list[float]) -> Iterator[list[Course]]:
        tried, chosen = np.repeat(rates, len(seeds)), np.tile(seeds, len(rates))
        found = courses(name, method, tried, chosen, steps)
        for i in range(0, len(found), len(seeds)):
            yield found[i : i + len(seeds)]

    return tuning.tune(
        setup.rates,
        run,
        lambda of_rate: np.mean([course.last for course in of_rate]),
        is_continued=True,
    )


def drift_of(name: str, method: str, steps: int) -> Any:
    """The factor that turns a method's learning rate into its matched rate."""
    drift = METHODS[method].drift
    if drift is not None:
        return drift
    return float(np.mean([course.drift for course in tune(name, method, steps).run]))


@functools.cache
def _group(name: str, method: str, matched: bool, steps: int, group: int) -> Any:
    """The runs that are computed together: seeds from ``group * lanes`` on."""
    rate = tune(name, method, steps).value
    drift = drift_of(name, method, steps) if matched else 1.0
    lanes = SETUPS[name].lanes
    seeds = range(group * lanes, (group + 1) * lanes)
    runs = METHODS[method].base if matched else method
    return courses(name, runs, [rate] * lanes, seeds, steps, drift)


def train(name: str, method: str, matched: bool, seed: int, steps: int) -> Course:
    """Trains at a method's rate: with it, or its base at this rate times its drift."""
    group, place = divmod(seed, SETUPS[name].lanes)
    course: Course = _group(name, method, matched, steps, group)[place]
    return course
