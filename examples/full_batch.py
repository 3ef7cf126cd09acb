"""Logistic regression on a full batch: Anderson acceleration next to Nesterov momentum.

python examples/full_batch.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

import plp_optax

L2, STEPS = 1e-3, 300


def main() -> dict[str, float]:
    """Minimises the loss with each method; returns the norms of the last gradients."""
    features, labels = load_breast_cancer(return_X_y=True)
    x = jnp.asarray(StandardScaler().fit_transform(features), jnp.float32)
    sign = jnp.asarray(2 * labels - 1, jnp.float32)

    def loss_fn(w):
        return jnp.logaddexp(0, -sign * (x @ w)).mean() + L2 / 2 * (w @ w)

    # The largest curvature of the logistic loss is a quarter of that of least squares.
    curvature = float(np.linalg.norm(x, ord=2)) ** 2 / (4 * len(x)) + L2
    root = np.sqrt(L2 / curvature)
    methods = {
        "gradient descent": optax.sgd(1 / curvature),
        "Nesterov momentum": optax.sgd(
            1 / curvature, momentum=float((1 - root) / (1 + root)), nesterov=True
        ),
        "Anderson": optax.chain(
            optax.sgd(1 / curvature), plp_optax.anderson(10, revert=True)
        ),
    }
    norms = {}
    for name, method in methods.items():
        tx = optax.with_extra_args_support(method)

        @jax.jit
        def minimise(w, tx=tx):
            def step(carry, _):
                w, state = carry
                value, gradient = jax.value_and_grad(loss_fn)(w)
                # `revert` compares the losses before and after a jump.
                updates, state = tx.update(gradient, state, w, value=value)
                return (optax.apply_updates(w, updates), state), None

            (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=STEPS)
            return w

        w = minimise(jnp.zeros(x.shape[1]))
        norms[name] = float(jnp.linalg.norm(jax.grad(loss_fn)(w)))
        print(f"{name}: loss {loss_fn(w):.6f}, gradient's norm {norms[name]:.1e}")
    return norms


if __name__ == "__main__":
    main()
