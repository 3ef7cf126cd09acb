"""A training loop with Equinox: the arrays of a module are the parameters.

python examples/equinox_loop.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import plp_optax

BATCH, EPOCHS = 64, 6


def main() -> float:
    """Trains a perceptron; returns its accuracy on the test set."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        (images / 16).astype(np.float32), labels, test_size=0.2, random_state=0
    )
    network = eqx.nn.MLP(64, 10, width_size=128, depth=1, key=jax.random.key(0))
    tx = plp_optax.plp_sgd(0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    state = tx.init(eqx.filter(network, eqx.is_array))

    @eqx.filter_jit
    def train_step(network, state, images, labels):
        @eqx.filter_value_and_grad
        def loss_fn(network):
            logits = jax.vmap(network)(images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean()

        loss, gradients = loss_fn(network)
        params = eqx.filter(network, eqx.is_array)
        updates, state = tx.update(gradients, state, params)
        return eqx.apply_updates(network, updates), state, loss

    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(x))
        for i in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[i : i + BATCH]
            network, state, loss = train_step(network, state, x[batch], y[batch])
        print(f"epoch {epoch + 1}: loss of the last batch {loss:.4f}")
    accuracy = float(jnp.mean(jax.vmap(network)(x_test).argmax(axis=-1) == y_test))
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
