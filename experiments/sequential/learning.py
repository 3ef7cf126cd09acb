"""Sequential learning: each sample of a stream allocates a unit or moves parameters.

References:
  Platt, "A Resource-Allocating Network for Function Interpolation", Neural
  Computation 3(2), 1991: growth, with LMS.

  Kadirkamanathan and Niranjan, "A Function Estimation Approach to Sequential Learning
  with Neural Networks", Neural Computation 5(6), 1993: the extended Kalman filter in
  place of LMS.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import plp_optax
from models import ran


class Growth(NamedTuple):
    """When a unit is allocated, and how wide.

    A sample (x, y) allocates a unit if its prediction error exceeds ``epsilon`` and
    the distance d from x to the nearest centre exceeds ``delta``. The unit has its
    centre at x, the error as its weight, and the width ``kappa * d`` (the first unit
    ``kappa * delta``). After t samples,
    ``delta = max(delta_max * exp(-t / decay), delta_min)``.

    Attributes:
      epsilon: In the unit of the targets.
      delta_max: In the unit of the inputs, as is ``delta_min``.
      delta_min: The final resolution.
      decay: In samples.
      kappa: The overlap of neighbouring units.
    """

    epsilon: float = 0.05
    delta_max: float = 0.5
    delta_min: float = 0.05
    decay: float = 45.0
    kappa: float = 0.87


class Rule(NamedTuple):
    """How parameters learn from a sample that allocates no unit.

    Attributes:
      optimizer: It takes the derivatives of the prediction as its updates, and the
        ``innovation``, target minus prediction.
      allocated: Maps its state, and which parameters have just been added (bools like
        the parameters), to its next state.
    """

    optimizer: optax.GradientTransformationExtraArgs
    allocated: Callable[[optax.OptState, ran.Params], optax.OptState]


class State(NamedTuple):
    """A learner in the middle of a stream.

    Attributes:
      network: The network.
      opt_state: The rule's state.
      samples: How many samples it has seen; int32 scalar.
      refused: How many of them found no unit left to allocate; int32 scalar.
    """

    network: ran.GrowingNetwork
    opt_state: optax.OptState
    samples: jax.Array
    refused: jax.Array


class Trace(NamedTuple):
    """Outputs along a stream of n samples.

    Attributes:
      error: Target minus prediction, before learning from the sample; shape (n,).
      units: Units after it; int32, shape (n,).
      watched: Predictions after it for the watched inputs; shape (n, watched inputs).
    """

    error: jax.Array
    units: jax.Array
    watched: jax.Array


def gradient_rule(optimizer: optax.GradientTransformation) -> Rule:
    """Learns by gradients of half the squared error; LMS is ``optax.sgd(rate)``.

    Args:
      optimizer: A transformation of gradients. If the network grows, its state must
        need no change when a unit is allocated: ``optax.sgd`` without momentum.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        innovation: jax.Array,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        gradients = jax.tree.map(lambda u: -innovation * u, updates)
        return optimizer.update(gradients, state, params, **extra_args)

    return Rule(
        optax.GradientTransformationExtraArgs(optimizer.init, update_fn),
        lambda state, added: state,
    )


def ekf_rule(prior_variance: float = 1.0, **settings: float) -> Rule:
    """Learns by :func:`plp_optax.ekf`, whose covariance grows with the network.

    Parameters of a new unit start with the prior variance, and without correlation to
    the others.

    Args:
      prior_variance: See :func:`plp_optax.ekf`.
      **settings: Its other arguments.
    """

    def allocated(state: plp_optax.EKFState, added: ran.Params) -> plp_optax.EKFState:
        new, _ = ravel_pytree(added)
        p = state.covariance
        fresh = prior_variance * jnp.eye(len(p), dtype=p.dtype)
        covariance = jnp.where(new[:, None] | new[None], fresh, p)
        return state._replace(covariance=covariance)

    return Rule(plp_optax.ekf(prior_variance, **settings), allocated)


def start(network: ran.GrowingNetwork, rule: Rule) -> State:
    """A learner that has seen no sample."""
    zero = jnp.zeros((), jnp.int32)
    return State(network, rule.optimizer.init(network.params), zero, zero)


@functools.partial(jax.jit, static_argnames="rule")
def learn(
    state: State,
    inputs: jax.Array,
    targets: jax.Array,
    rule: Rule,
    *,
    growth: Growth | None = None,
    watched: jax.Array | None = None,
) -> tuple[State, Trace]:
    """Learns from a stream, each sample once and in order.

    The first sample of all sets the bias to its target. It compiles once for each
    rule, whatever the growth.

    Args:
      state: Where to start from.
      inputs: Shape (n, inputs).
      targets: Shape (n,).
      rule: How parameters learn. Use the same object again: another one compiles
        again, even if it does the same.
      growth: When units are allocated; None for never. Once all units exist, samples
        that would allocate one are counted as refused, and learned by the rule.
      watched: Inputs whose predictions are noted after each sample, shape
        (watched inputs, inputs).

    Returns:
      The learner after the stream, and what happened on the way.
    """
    if watched is None:
        watched = jnp.zeros((0, inputs.shape[1]), inputs.dtype)

    def step(state: State, sample: tuple[jax.Array, jax.Array]) -> tuple[State, Trace]:
        x, y = sample
        state, error = _learn_one(state, x, y, growth, rule)
        predictions = jax.vmap(ran.predict, (None, 0))(state.network, watched)
        return state, Trace(error, state.network.units, predictions)

    return jax.lax.scan(step, state, (inputs, targets))


def _learn_one(
    state: State, x: jax.Array, y: jax.Array, growth: Growth | None, rule: Rule
) -> tuple[State, jax.Array]:
    """Learns from one sample; returns its error before that, too."""
    network, opt_state, samples, refused = state
    prediction, jacobian = ran.linearize(network, x)
    error = y - prediction
    is_first = samples == 0

    updates, adapted_state = rule.optimizer.update(
        jacobian, opt_state, network.params, innovation=error
    )
    adapted = network._replace(params=optax.apply_updates(network.params, updates))
    with_bias = network._replace(params=network.params._replace(bias=y))
    network = _where(is_first, with_bias, adapted)
    next_opt_state = _where(is_first, opt_state, adapted_state)

    if growth is not None:
        delta = jnp.maximum(
            growth.delta_max * jnp.exp(-samples / growth.decay), growth.delta_min
        )
        distance = ran.nearest(state.network, x)
        is_novel = (distance > delta) & (abs(error) > growth.epsilon) & ~is_first
        is_full = state.network.active.all()
        reach = jnp.where(jnp.isinf(distance), delta, distance)
        grown = ran.allocate(state.network, x, error, growth.kappa * reach)
        added = ran.parameters_of(grown.active & ~state.network.active, grown.params)
        allocates = is_novel & ~is_full
        network = _where(allocates, grown, network)
        next_opt_state = _where(
            allocates, rule.allocated(opt_state, added), next_opt_state
        )
        refused += is_novel & is_full
    return State(network, next_opt_state, samples + 1, refused), error


def _where(condition: jax.Array, a: Any, b: Any) -> Any:
    """Selects one of two trees with the same shapes and types."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y).astype(y.dtype), a, b)
