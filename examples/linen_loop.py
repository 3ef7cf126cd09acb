"""A training loop with Flax linen: digits, SGD with momentum, prediction last.

python examples/linen_loop.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import plp_optax

BATCH, EPOCHS = 64, 6


class Network(nn.Module):
    """Two convolutions and a linear layer."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images ``[N, 8, 8, 1]`` to logits ``[N, 10]``."""
        x = nn.relu(nn.Conv(8, (3, 3))(images))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def main() -> float:
    """Trains the network; returns its accuracy on the test set."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(
        images, digits.target, test_size=0.2, random_state=0
    )
    network = Network()
    params = network.init(jax.random.key(0), x[:1])
    steps = EPOCHS * (len(x) // BATCH)
    tx = optax.chain(
        optax.add_decayed_weights(1e-4),
        optax.sgd(optax.cosine_decay_schedule(0.05, steps), 0.9, nesterov=True),
        plp_optax.plp(step=1.0, period=4),  # last: it sees the final update
    )
    state = tx.init(params)

    @jax.jit
    def train_step(params, state, images, labels):
        def loss_fn(params):
            logits = network.apply(params, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean()

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(x))
        for i in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[i : i + BATCH]
            params, state, loss = train_step(params, state, x[batch], y[batch])
        print(f"epoch {epoch + 1}: loss of the last batch {loss:.4f}")
    predicted = network.apply(params, x_test).argmax(axis=-1)
    accuracy = float(jnp.mean(predicted == y_test))
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
