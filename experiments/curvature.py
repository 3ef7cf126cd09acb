"""The top eigenvalue of a loss's Hessian, from products with vectors alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh


class TopEigenvalue(NamedTuple):
    """The largest eigenvalue of a Hessian H.

    Attributes:
      value: The eigenvalue that is largest in sign, not in modulus: loss per squared
        parameter. NaN where the Hessian is not finite.
      residual: The norm of ``H v - value v`` for the unit vector ``v``, computed from
        the two. An eigenvalue of H is within this of ``value``.
      converged: Whether ``residual <= tolerance * abs(value)``.
    """

    value: float
    residual: float
    converged: bool


def top_eigenvalue(
    loss_fn: Callable[[Any], jax.Array],
    params: Any,
    *,
    tolerance: float = 1e-3,
    max_restarts: int = 20,
    key: jax.Array,
) -> TopEigenvalue:
    """Finds the largest eigenvalue of the Hessian of ``loss_fn`` at ``params``.

    Restarted Lanczos iteration from a random vector (``scipy.sparse.linalg.eigsh``),
    which keeps 20 vectors like the parameters in host memory. A product with the
    Hessian is ``jax.jvp`` of ``jax.grad``, and each is a call of one compiled function:
    on a CPU a convolution's backward pass is many times slower inside a loop on the
    device.

    Args:
      loss_fn: Maps parameters to a scalar. A ``jax.tree_util.Partial`` over a function
        and its arrays, such as a batch, compiles once for all of them; other functions
        compile at each call, unless they compare equal.
      params: A pytree of floating arrays, of three numbers at least.
      tolerance: The residual to stop at, relative to the eigenvalue. The error of the
        eigenvalue is of the order of its square, where the spectrum has a gap below it.
      max_restarts: Restarts, of at most 20 products each, after which the tolerance is
        raised by 10 and the iteration begins again.
      key: Draws the random start.

    Returns:
      The eigenvalue and how well it converged.

    References:
      Lehoucq, Sorensen, Yang, *ARPACK Users' Guide*, 1998. Pearlmutter, "Fast exact
      multiplication by the Hessian", 1994.
    """
    loss = loss_fn if isinstance(loss_fn, Partial) else Partial(loss_fn)
    flat, _ = ravel_pytree(params)
    start = np.asarray(jax.random.normal(key, flat.shape, flat.dtype))

    def multiply(vector: np.ndarray) -> np.ndarray:
        product = _product(loss, params, jnp.asarray(vector.ravel(), flat.dtype))
        return np.asarray(product)

    if not np.isfinite(multiply(start)).all():
        return TopEigenvalue(np.nan, np.nan, False)
    hessian = LinearOperator((flat.size, flat.size), multiply, dtype=flat.dtype)
    vector = _top_vector(hessian, start, tolerance, max_restarts)
    product = multiply(vector)
    value = float(vector @ product)
    residual = float(np.linalg.norm(product - value * vector))
    return TopEigenvalue(value, residual, residual <= tolerance * abs(value))


def _top_vector(
    hessian: LinearOperator, start: np.ndarray, tolerance: float, max_restarts: int
) -> np.ndarray:
    """The unit eigenvector of the largest eigenvalue, at a tolerance that is reached.

    ARPACK stops by its own estimate, which leaves out rounding: half the tolerance.
    """
    while True:
        try:
            _, vectors = eigsh(
                hessian,
                k=1,
                which="LA",
                v0=start,
                tol=tolerance / 2,
                maxiter=max_restarts,
            )
        except ArpackNoConvergence:
            tolerance *= 10
        else:
            return vectors[:, 0] / np.linalg.norm(vectors[:, 0])


@jax.jit
def _product(loss: Partial, params: Any, vector: jax.Array) -> jax.Array:
    """The Hessian times a flat vector."""
    _, unravel = ravel_pytree(params)
    # The default on a GPU, TensorFloat-32, has an error of the order of a tolerance.
    with jax.default_matmul_precision("highest"):
        _, product = jax.jvp(jax.grad(loss), (params,), (unravel(vector),))
    return ravel_pytree(product)[0]
