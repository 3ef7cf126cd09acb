"""Ready-made optimizers: optax's own, followed by PLP."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from plp_optax import _checks
from plp_optax._plp import plp

Mask = Any | Callable[[optax.Params], Any]


def plp_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    *,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    prediction: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD as in the paper and in PyTorch, followed by :func:`plp_optax.plp`.

    L2 weight decay is added to the gradient, then come momentum and the learning rate,
    then the prediction.

    Args:
      learning_rate: As in :func:`optax.sgd`, like the three arguments that follow.
      momentum: Decay of the momentum buffer; None for none.
      nesterov: Whether the momentum is Nesterov's.
      accumulator_dtype: Dtype of the momentum buffer.
      weight_decay: L2 coefficient; unless it is 0, ``update`` needs ``params``.
      mask: Which parameters decay; see :func:`optax.add_decayed_weights`.
      prediction: The prediction, such as ``plp(0.5, period=3)``; by default
        ``plp()``.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: If an argument is not as above.

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
    _check_numbers(learning_rate=learning_rate, weight_decay=weight_decay)
    if momentum is not None:
        _check_numbers(momentum=momentum)
    no_decay = not isinstance(weight_decay, jax.Array) and weight_decay == 0
    return optax.chain(
        # Neither has a state, but only the second needs parameters.
        optax.identity()
        if no_decay and mask is None
        else optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype),
        plp() if prediction is None else prediction,
    )


def plp_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: float = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    prediction: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW, with its decoupled weight decay, followed by :func:`plp_optax.plp`.

    Like :func:`optax.adamw`, ``update`` needs ``params``.

    Args:
      learning_rate: As in :func:`optax.adamw`, like the arguments that follow.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      eps_root: Added to the second moment under the root.
      mu_dtype: Dtype of the first moment.
      weight_decay: Decoupled weight decay, multiplied by the learning rate.
      mask: Which parameters decay.
      nesterov: Whether the first moment is Nesterov's.
      prediction: The prediction, such as ``plp(0.5, period=3)``; by default
        ``plp()``. With float32 parameters ``plp(store="parameters")`` is faster and
        needs no temporary copy of them.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: If an argument is not as above.

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
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
    )
    return optax.chain(
        optax.adamw(
            learning_rate,
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            weight_decay,
            mask,
            nesterov=nesterov,
        ),
        plp() if prediction is None else prediction,
    )


def _check_numbers(**options: object) -> None:
    for name, value in options.items():
        if not callable(value):
            _checks.check_finite(name, value)
