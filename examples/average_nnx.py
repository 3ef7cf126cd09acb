"""An average of the parameters that evaluates with batch norm, in Flax nnx.

python examples/average_nnx.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import plp_optax

BATCH, EPOCHS = 64, 8


class Network(nnx.Module):
    """A perceptron with batch normalisation."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images ``[N, 64]`` to logits ``[N, 10]``."""
        return self.head(nnx.relu(self.norm(self.hidden(images))))


@nnx.jit
def train_step(network, optimizer, images, labels):
    """Takes one step in place."""

    def loss_fn(network):
        logits = network(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    optimizer.update(network, nnx.grad(loss_fn)(network))


def main() -> tuple[float, float]:
    """Trains at a constant rate; returns accuracies of last parameters and average."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        (images / 16).astype(np.float32), labels, test_size=0.2, random_state=0
    )
    network = Network(nnx.Rngs(0))
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), plp_optax.tail_average())  # last
    optimizer = nnx.Optimizer(network, tx, wrt=nnx.Param)

    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for i in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[i : i + BATCH]
            train_step(network, optimizer, x[batch], y[batch])

    batches = [x[i : i + BATCH] for i in range(0, 16 * BATCH, BATCH)]

    def accuracy(network):
        # Running statistics lag behind the parameters, and the average has none.
        network.train()
        plp_optax.nnx.recompute_batch_stats(network, batches)
        network.eval()
        return float(jnp.mean(network(x_test).argmax(axis=-1) == y_test))

    params = nnx.state(network, nnx.Param)
    average = nnx.clone(network)
    nnx.update(average, plp_optax.evaluation_params(optimizer.opt_state, params))
    accuracies = accuracy(network), accuracy(average)
    print("test accuracy: last parameters {:.3f}, average {:.3f}".format(*accuracies))
    return accuracies


if __name__ == "__main__":
    main()
