"""Ready-made chains: PLP behind a whole optimizer, where it belongs."""

import jax
import optax

from plp_optax import _checks
from plp_optax._affine_window import Schedule, Store
from plp_optax._coefficients import Fit
from plp_optax._plp import plp


def plp_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    *,
    step: jax.typing.ArrayLike | Schedule = 1.0,
    window: int = 3,
    period: int = 4,
    fit: Fit = "midpoint",
    active: Schedule | None = None,
    store: Store = "folded",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD as in the paper and in PyTorch, followed by :func:`plp_optax.plp`.

    L2 weight decay joins the gradient, then come momentum and the learning rate,
    then the prediction.

    Args:
      learning_rate: A number or an optax schedule.
      momentum: Decay of the momentum buffer; None for none.
      nesterov: Whether the momentum is Nesterov's.
      weight_decay: L2 coefficient; unless it is 0, ``update`` needs ``params``.
      step: See :func:`plp_optax.plp`, as for the arguments that follow.
      window: Parameters that the line is drawn through.
      period: Optimizer steps in a cycle.
      fit: ``"midpoint"`` or ``"least_squares"``.
      active: Predicate on the number of updates so far.
      store: ``"folded"`` or ``"snapshots"``.
      accumulator_dtype: Dtype of the momentum buffer and of the window.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: As :func:`plp_optax.plp`.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = plp_optax.plp_sgd(0.05, momentum=0.9, weight_decay=1e-4)
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(w):.1f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.0
      20.2
      13.0
      3.9
    """
    _check_numbers(
        learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    return optax.chain(
        # Without decay the chain must not ask for parameters.
        optax.identity()
        if _is_zero(weight_decay)
        else optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype),
        plp(
            step,
            window=window,
            period=period,
            fit=fit,
            active=active,
            store=store,
            accumulator_dtype=accumulator_dtype,
        ),
    )


def plp_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    *,
    step: jax.typing.ArrayLike | Schedule = 1.0,
    window: int = 3,
    period: int = 4,
    fit: Fit = "midpoint",
    active: Schedule | None = None,
    store: Store = "folded",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW, with its decoupled weight decay, followed by :func:`plp_optax.plp`.

    Args:
      learning_rate: A number or an optax schedule.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      weight_decay: Decoupled coefficient; unless it is 0, ``update`` needs
        ``params``.
      step: See :func:`plp_optax.plp`, as for the arguments that follow.
      window: Parameters that the line is drawn through.
      period: Optimizer steps in a cycle.
      fit: ``"midpoint"`` or ``"least_squares"``.
      active: Predicate on the number of updates so far.
      store: ``"folded"`` or ``"snapshots"``.
      accumulator_dtype: Dtype of the first moment and of the window.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: As :func:`plp_optax.plp`.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = plp_optax.plp_adamw(0.5)
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(w):.1f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.0
      18.5
      13.0
      6.7
    """
    _check_numbers(
        learning_rate=learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay
    )
    options = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": accumulator_dtype}
    return optax.chain(
        optax.adam(learning_rate, **options)
        if _is_zero(weight_decay)
        else optax.adamw(learning_rate, **options, weight_decay=weight_decay),
        plp(
            step,
            window=window,
            period=period,
            fit=fit,
            active=active,
            store=store,
            accumulator_dtype=accumulator_dtype,
        ),
    )


def _check_numbers(**options: object) -> None:
    for name, value in options.items():
        if value is not None and not callable(value):
            _checks.check_finite(name, value)


def _is_zero(weight_decay: float | jax.Array) -> bool:
    return not isinstance(weight_decay, jax.Array) and weight_decay == 0
