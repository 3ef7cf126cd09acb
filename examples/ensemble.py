"""Eight networks at once by ``vmap``, each with its own seed and learning rate.

python examples/ensemble.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import plp_optax

BATCH, STEPS = 64, 200


def main() -> tuple[np.ndarray, float]:
    """Trains the ensemble; returns its members' accuracies and that of their vote."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = map(
        jnp.asarray,
        train_test_split(
            (images / 16).astype(np.float32), labels, test_size=0.2, random_state=0
        ),
    )
    network = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])

    # A function of the numbers that `inject_hyperparams` keeps in the state.
    def make(learning_rate):
        return plp_optax.plp_sgd(learning_rate, momentum=0.9, nesterov=True)

    tx = optax.inject_hyperparams(make)(learning_rate=0.0)

    def train(seed, learning_rate):
        key = jax.random.key(seed)
        params = network.init(key, x[:1])
        state = optax.tree.set(tx.init(params), learning_rate=learning_rate)

        def step(carry, i):
            params, state = carry
            batch = jax.random.randint(jax.random.fold_in(key, i), (BATCH,), 0, len(x))

            def loss_fn(params):
                logits = network.apply(params, x[batch])
                return optax.softmax_cross_entropy_with_integer_labels(
                    logits, y[batch]
                ).mean()

            updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, state), jnp.arange(STEPS))
        return nn.log_softmax(network.apply(params, x_test))

    rates = jnp.geomspace(0.02, 0.2, 8)
    log_probabilities = jax.jit(jax.vmap(train))(jnp.arange(8), rates)
    accuracies = np.mean(log_probabilities.argmax(-1) == y_test[None], axis=1)
    for rate, accuracy in zip(rates, accuracies, strict=True):
        print(f"learning rate {rate:.3f}: test accuracy {accuracy:.3f}")
    vote = jax.nn.logsumexp(log_probabilities, axis=0).argmax(-1)
    together = float(np.mean(vote == y_test))
    print(f"together: {together:.3f}")
    return accuracies, together


if __name__ == "__main__":
    main()
