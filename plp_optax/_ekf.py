"""The extended Kalman filter over a model's parameters."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from plp_optax import _checks
from plp_optax._trees import widened

# 400 MB of covariance in float32; an update needs about three times that.
MAX_PARAMETERS = 10_000


class EKFState(NamedTuple):
    """State of :func:`ekf`.

    Attributes:
      covariance: The parameters' covariance P, symmetric and positive definite;
        shape ``(N, N)``, with rows in the order of
        ``jax.flatten_util.ravel_pytree(params)``.
      missing: Outputs that were left out because their innovation was not finite; int32
        scalar.
    """

    covariance: jax.Array
    missing: jax.Array


def ekf(
    prior_variance: jax.typing.ArrayLike = 1.0,
    *,
    measurement_noise: jax.typing.ArrayLike = 1.0,
    process_noise: jax.typing.ArrayLike = 0.0,
    forgetting: jax.typing.ArrayLike = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""The extended Kalman filter: second-order learning, one sample at a time.

    The parameters :math:`w` of a small model :math:`f(x; w)` are taken for the state
    of a dynamic system that is observed through the targets :math:`y`,

    .. math::
        w_t = w_{t-1} + \text{noise}(q I), \qquad
        y_t = f(x_t; w_t) + \text{noise}(r I).

    With the Jacobian :math:`A = \partial f / \partial w` of m outputs by N parameters
    and the innovation :math:`e = y - f(x; w)`, an update is

    .. math::
        \bar P &= P / \lambda, \\
        K &= \bar P A^T (A \bar P A^T + r I)^{-1}, \\
        w &\leftarrow w + K e, \\
        P &\leftarrow (I - K A) \bar P (I - K A)^T + r K K^T + q I.

    The last line is Joseph's form of :math:`\bar P - K A \bar P + q I`. It keeps P
    positive definite in spite of rounding, and costs :math:`O(N^2 m)`, too.

    On a linear model this is recursive least squares: with ``process_noise=0``, the
    parameters after n samples are those of ridge regression,

    .. math::
        \arg\min_w \sum_{t=1}^n \lambda^{n-t} \lVert y_t - A_t w \rVert^2 / r
        + \lambda^n \lVert w - w_0 \rVert^2 / p_0.

    Pass the **Jacobian of the prediction** in place of the gradient of a loss, and
    the innovation as an extra argument::

        updates, state = tx.update(jacobian, state, innovation=target - prediction)
        params = optax.apply_updates(params, updates)

    The emitted update is :math:`+K e`, ready to be added. Place ``ekf`` **first** in
    a chain; a learning rate is not needed, and ``optax.sgd`` after it would turn the
    sign. A mini-batch is a model of several outputs: stack its samples' outputs. Do
    not wrap it in ``optax.MultiSteps``, which would average Jacobians.

    In float32, keep ``prior_variance`` times the squared norm of an output's Jacobian
    below a million times ``measurement_noise``: what the first updates leave of the
    covariance would be smaller than its rounding errors.

    Outputs whose innovation is not finite, such as those of a missing target, are left
    out of an update, and counted.

    With ``forgetting`` below 1 the covariance grows by ``1 / forgetting`` with each
    update in directions that no sample excites, and overflows in the end ("wind-up").
    ``process_noise`` tracks a drift too, and grows linearly.

    Args:
      prior_variance: The variance :math:`p_0` of each parameter around its initial
        value; :math:`P_0 = p_0 I`. Positive.
      measurement_noise: The variance r of the noise on each output, in the squared
        unit of the targets. Positive.
      process_noise: The variance q by which each parameter drifts from one update to
        the next; at least 0. Above 0 for targets that change with time.
      forgetting: The factor :math:`\lambda` by which the weight of earlier samples
        shrinks with each update; above 0 and at most 1. Below 1 for targets that
        change, too, if samples excite all directions (see "wind-up" above).

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state :class:`EKFState`.
      The covariance has the parameters' widest dtype, float32 at least; N is limited
      to 10,000. ``update(jacobian, state, params=None, *, innovation)`` takes a tree
      like the parameters and a scalar for one output; for m outputs, an innovation of
      shape ``(m,)`` and leaves of shape ``(m, *parameter.shape)``, as
      ``jax.jacrev`` gives them. The updates are like the parameters, in the
      Jacobian's dtypes.

    Raises:
      ValueError: If an argument is not as above; from ``init``, if the parameters are
        too many, or not real floating-point numbers; from ``update``, if there is no
        innovation, or it does not fit the Jacobian. All four arguments work under
        ``optax.inject_hyperparams``, which makes schedules of the last three.

    Examples:
      A curve with two parameters, from twelve samples:

      >>> import jax, optax, plp_optax
      >>> def model(params, x):
      ...     return params["height"] * jax.numpy.sin(params["rate"] * x)
      >>> params = {"height": 1.0, "rate": 1.0}
      >>> tx = plp_optax.ekf(measurement_noise=0.01)
      >>> state = tx.init(params)
      >>> for i in range(12):
      ...     x = 0.25 * i
      ...     target = 2 * jax.numpy.sin(1.5 * x)
      ...     prediction, jacobian = jax.value_and_grad(model)(params, x)
      ...     updates, state = tx.update(
      ...         jacobian, state, innovation=target - prediction
      ...     )
      ...     params = optax.apply_updates(params, updates)
      ...     if i % 3 == 2:
      ...         print(f"{params['height']:.3f} {params['rate']:.3f}")
      1.608 2.033
      1.930 1.479
      1.939 1.492
      1.956 1.502

    References:
      Singhal and Wu, `Training Multilayer Perceptrons with the Extended Kalman
      Algorithm <https://papers.neurips.cc/paper_files/paper/1988/hash/38b3eff8baf56627478ec76a704e9b52-Abstract.html>`_,
      NIPS 1988 (printed 1989)

      Kadirkamanathan and Niranjan, `A Function Estimation Approach to Sequential
      Learning with Neural Networks
      <https://direct.mit.edu/neco/article-abstract/5/6/954/5756>`_, Neural
      Computation 5(6), 1993

      Puskorius and Feldkamp, Neurocontrol of Nonlinear Dynamical Systems with Kalman
      Filter Trained Recurrent Networks, IEEE Transactions on Neural Networks 5(2),
      1994: several outputs at once, and process noise
    """
    _checks.check_number("prior_variance", prior_variance, above=0)
    _checks.check_number("measurement_noise", measurement_noise, above=0)
    _checks.check_number("process_noise", process_noise, low=0)
    _checks.check_number("forgetting", forgetting, above=0, high=1)

    def init_fn(params: optax.Params) -> EKFState:
        leaves = jax.tree.leaves(params)
        for leaf in leaves:
            _check_real("the parameters of ekf", leaf)
        size = sum(np.size(leaf) for leaf in leaves)
        # NumPy's rules serve under jax_numpy_dtype_promotion="strict" too.
        dtypes = [np.dtype(np.float32), *map(widened, leaves)]
        dtype = functools.reduce(np.promote_types, dtypes)
        if size > MAX_PARAMETERS:
            raise ValueError(
                f"ekf keeps an N x N covariance and takes up to {MAX_PARAMETERS:,} "
                f"parameters; these {size:,} would need "
                f"{size * size * dtype.itemsize:,} bytes in {dtype.name}"
            )
        variance = jnp.asarray(prior_variance, dtype)
        return EKFState(
            covariance=variance * jnp.eye(size, dtype=dtype),
            missing=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: optax.Updates,
        state: EKFState,
        params: optax.Params | None = None,
        *,
        innovation: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EKFState]:
        del extra_args
        innovation = _check_innovation(innovation)
        _check_jacobian(updates, innovation, params, len(state.covariance))
        if not jax.tree.leaves(updates):
            return updates, state
        if not innovation.ndim:
            innovation = innovation[None]
            updates = jax.tree.map(lambda x: jnp.asarray(x)[None], updates)

        first, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], updates))
        jacobian = jax.vmap(lambda row: ravel_pytree(row)[0])(updates)
        dtype = state.covariance.dtype
        r, q, decay = (
            jnp.asarray(x, dtype)
            for x in (measurement_noise, process_noise, forgetting)
        )
        # An output whose target is missing (NaN) is left out: its row says nothing.
        observed = jnp.isfinite(innovation)
        innovation = jnp.where(observed, innovation, 0)
        jacobian = jnp.where(observed[:, None], jacobian, 0)
        # By default an accelerator rounds the factors of a matrix product.
        with jax.default_matmul_precision("highest"):
            gain, covariance = _observe(
                jacobian.astype(dtype), state.covariance / decay, r
            )
            step = gain @ innovation.astype(dtype)
        covariance += q * jnp.eye(len(covariance), dtype=dtype)
        return unravel(step.astype(first.dtype)), EKFState(
            covariance=covariance,
            missing=state.missing + (~observed).sum(dtype=jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _observe(
    jacobian: jax.Array, covariance: jax.Array, r: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gain (N, m) and the covariance after one observation of m outputs."""
    cross = covariance @ jacobian.T
    noise = r * jnp.eye(len(jacobian), dtype=r.dtype)
    innovation_covariance = jacobian @ cross + noise  # S = A P A' + r I, [m, m]
    if len(jacobian) == 1:
        gain = cross / innovation_covariance
    else:
        factor = jax.scipy.linalg.cho_factor(innovation_covariance)
        # K = P A' S^-1 as the transpose of S^-1 (P A')', since S is symmetric.
        gain = jax.scipy.linalg.cho_solve(factor, cross.T).T
    # (I - KA) P (I - KA)' from the left to the right, so that no product of two N x N
    # matrices is formed. `left @ A'` is nearly 0: it is computed from the rounded
    # `left`, whose error along A the second factor then removes.
    left = covariance - gain @ cross.T
    covariance = left - (left @ jacobian.T) @ gain.T + r * (gain @ gain.T)
    # Symmetric in spite of rounding.
    return gain, (covariance + covariance.T) / 2


def _check_real(name: str, value: Any) -> None:
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name} must be real floating-point numbers, got {dtype.name}"
        )


def _check_innovation(innovation: jax.typing.ArrayLike | None) -> jax.Array:
    """Returns the innovation as an array; raises unless it is a scalar or a vector."""
    if innovation is None:
        raise ValueError(
            "ekf needs the innovation: pass it, as in tx.update(jacobian, state, "
            "params, innovation=target - prediction)"
        )
    _check_real("innovation", innovation)
    innovation = jnp.asarray(innovation)
    if innovation.ndim > 1 or not innovation.size:
        raise ValueError(
            "innovation must be a scalar or of shape (outputs,), "
            f"got shape {innovation.shape}"
        )
    return innovation


def _check_jacobian(
    jacobian: optax.Updates,
    innovation: jax.Array,
    params: optax.Params | None,
    size: int,
) -> None:
    """Raises unless the Jacobian fits the innovation and the ``size`` parameters."""
    leaves = jax.tree.leaves(jacobian)
    shapes = [np.shape(leaf) for leaf in leaves]
    for leaf in leaves:
        _check_real("the Jacobian", leaf)
    outputs, axes = innovation.shape, innovation.ndim
    if params is None:
        fits = sum(math.prod(shape[axes:]) for shape in shapes) == size
        fits = fits and all(shape[:axes] == outputs for shape in shapes)
    else:
        fits = shapes == [outputs + np.shape(p) for p in jax.tree.leaves(params)]
    if not fits:
        raise ValueError(
            f"with an innovation of shape {outputs}, the Jacobian needs leaves of "
            f"shape {(*outputs, '*parameter.shape')} for the {size} parameters of the "
            f"state, got {shapes}"
        )
