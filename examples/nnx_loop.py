"""A training loop with Flax nnx: the chain goes into ``nnx.Optimizer``.

python examples/nnx_loop.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import plp_optax

BATCH, EPOCHS = 64, 6


class Network(nnx.Module):
    """A perceptron with one hidden layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images ``[N, 64]`` to logits ``[N, 10]``."""
        return self.head(nnx.relu(self.hidden(images)))


@nnx.jit
def train_step(network, optimizer, images, labels):
    """Takes one step in place; returns the loss."""

    def loss_fn(network):
        logits = network(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(network)
    optimizer.update(network, gradients)
    return loss


def main() -> float:
    """Trains the network; returns its accuracy on the test set."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        (images / 16).astype(np.float32), labels, test_size=0.2, random_state=0
    )
    network = Network(nnx.Rngs(0))
    tx = plp_optax.plp_sgd(0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    optimizer = nnx.Optimizer(network, tx, wrt=nnx.Param)

    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(x))
        for i in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[i : i + BATCH]
            loss = train_step(network, optimizer, x[batch], y[batch])
        print(f"epoch {epoch + 1}: loss of the last batch {loss:.4f}")
    accuracy = float(jnp.mean(network(x_test).argmax(axis=-1) == y_test))
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
