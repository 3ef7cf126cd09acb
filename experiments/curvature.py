"""The top eigenvalue of a loss's Hessian, from products with vectors alone."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.linalg import eigh_tridiagonal


class TopEigenvalue(NamedTuple):
    """What Lanczos iteration found of a Hessian H.

    Attributes:
      value: The largest eigenvalue, the largest in sign and not in modulus: loss a
        squared parameter.
      lowest: The smallest Ritz value, which the most negative eigenvalue is no higher
        than. It has not converged.
      residual: The norm of ``H v - value v`` for the unit vector ``v``, measured and
        not estimated. An eigenvalue of H lies within this of ``value``.
      iterations: Products with H that were taken, without the residual's.
      converged: Whether ``residual <= tolerance * abs(value)``.
      vector: The unit eigenvector ``v``, like the parameters.
    """

    value: float
    lowest: float
    residual: float
    iterations: int
    converged: bool
    vector: Any


def top_eigenvalue(
    loss_fn: Callable[[Any], jax.Array],
    params: Any,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 80,
    key: jax.Array,
) -> TopEigenvalue:
    """Finds the largest eigenvalue of the Hessian of ``loss_fn`` at ``params``.

    Lanczos iteration from a random vector, with every new vector made orthogonal to
    all before it, so that rounding brings forth no spurious copies of eigenvalues. It
    keeps ``max_iterations + 1`` vectors like the parameters. A product with the Hessian
    is ``jax.jvp`` of ``jax.grad``, and each is a call of one compiled function: on a
    CPU a convolution's backward pass is many times slower inside a loop on the device.

    As every Krylov method it finds what its start has a part in. A top eigenvalue that
    exceeds the bulk of the spectrum by less than ``tolerance`` is not told from it.

    Args:
      loss_fn: Maps parameters to a scalar. A ``jax.tree_util.Partial`` over a function
        and its arrays, such as a batch, compiles once for all of them; other functions
        compile at each call, unless they compare equal.
      params: A pytree of floating arrays.
      tolerance: The residual to stop at, relative to the eigenvalue. The eigenvalue's
        own error is of the order of its square, where the spectrum has a gap below it.
      max_iterations: Products with the Hessian to stop after.
      key: Of the random start.

    Returns:
      The eigenvalue and how well it converged; NaN where the Hessian is not finite.

    Raises:
      ValueError: If ``tolerance`` or ``max_iterations`` is not positive.

    References:
      Lanczos, "An iteration method for the solution of the eigenvalue problem of
      linear differential and integral operators", 1950. Pearlmutter, "Fast exact
      multiplication by the Hessian", 1994.
    """
    if not (tolerance > 0 and max_iterations > 0):
        raise ValueError(
            f"tolerance and max_iterations must be positive, got {tolerance} and "
            f"{max_iterations}"
        )
    loss = loss_fn if isinstance(loss_fn, Partial) else Partial(loss_fn)
    flat, unravel = ravel_pytree(params)
    steps = min(max_iterations, flat.size)
    vector = jax.random.normal(key, flat.shape, flat.dtype)
    basis = jnp.zeros((steps + 1, flat.size), flat.dtype)
    basis = basis.at[0].set(vector / jnp.linalg.norm(vector))
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for k in range(steps):
        product = _product(loss, params, basis[k])
        basis, *entries = _extend(basis, product, k)
        alpha, beta = map(float, entries)
        if not math.isfinite(alpha + beta):
            nothing = unravel(jnp.full_like(flat, jnp.nan))
            return TopEigenvalue(*(math.nan,) * 3, k + 1, False, nothing)
        diagonal.append(alpha)
        values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
        off_diagonal.append(beta)
        value = float(values[-1])
        limit = tolerance * abs(value)
        if beta * abs(vectors[-1, -1]) > limit and k + 1 < steps:
            continue
        # The estimate leaves out rounding, so that the residual itself has the word.
        weights = np.pad(vectors[:, -1], (0, steps - k))
        vector = jnp.asarray(weights, flat.dtype) @ basis
        vector /= jnp.linalg.norm(vector)
        product = _product(loss, params, vector)
        residual = float(jnp.linalg.norm(product - value * vector))
        if residual <= limit:
            break
    return TopEigenvalue(
        value, float(values[0]), residual, k + 1, residual <= limit, unravel(vector)
    )


@jax.jit
def _product(loss: Partial, params: Any, vector: jax.Array) -> jax.Array:
    """The Hessian times a flat vector."""
    _, unravel = ravel_pytree(params)
    # A GPU would else multiply in TensorFloat-32, whose error is that of a tolerance.
    with jax.default_matmul_precision("highest"):
        _, product = jax.jvp(jax.grad(loss), (params,), (unravel(vector),))
    return ravel_pytree(product)[0]


@functools.partial(jax.jit, donate_argnums=0)
def _extend(
    basis: jax.Array, product: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One Lanczos step from the vector in row k; rows after it are zero.

    Returns:
      The basis with row k + 1, and the new entries of the tridiagonal matrix: on the
      diagonal and beside it.
    """
    alpha = basis[k] @ product
    rest = product
    for _ in range(2):  # once leaves a remainder as large as rounding is to the first
        rest -= (basis @ rest) @ basis
    beta = jnp.linalg.norm(rest)
    row = jnp.where(beta > 0, rest / beta, 0)
    return basis.at[k + 1].set(row), alpha, beta
