"""An average of the parameters that evaluates with batch norm, in Flax linen.

python examples/average_linen.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import plp_optax

BATCH, EPOCHS = 64, 8


class Network(nn.Module):
    """A perceptron with batch normalisation."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images ``[N, 64]`` to logits ``[N, 10]``."""
        x = nn.Dense(64)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x)


def main() -> tuple[float, float]:
    """Trains at a constant rate; returns accuracies of last parameters and average."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        (images / 16).astype(np.float32), labels, test_size=0.2, random_state=0
    )
    network = Network()
    variables = network.init(jax.random.key(0), x[:1], train=False)
    params, stats = variables["params"], variables["batch_stats"]
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), plp_optax.tail_average())  # last
    state = tx.init(params)

    def apply(variables, images):
        return network.apply(variables, images, train=True, mutable=["batch_stats"])

    @jax.jit
    def train_step(params, stats, state, images, labels):
        def loss_fn(params):
            logits, mutated = apply({"params": params, "batch_stats": stats}, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), mutated["batch_stats"]

        gradients, stats = jax.grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), stats, state

    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for i in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[i : i + BATCH]
            params, stats, state = train_step(params, stats, state, x[batch], y[batch])

    batches = [x[i : i + BATCH] for i in range(0, 16 * BATCH, BATCH)]
    training_mode = jax.jit(apply)

    def accuracy(params):
        # Running statistics lag behind the parameters, and the average has none.
        variables = plp_optax.linen.recompute_batch_stats(
            training_mode, {"params": params, "batch_stats": stats}, batches
        )
        logits = network.apply(variables, x_test, train=False)
        return float(jnp.mean(logits.argmax(axis=-1) == y_test))

    last = accuracy(params)
    average = accuracy(plp_optax.evaluation_params(state, params))
    print(f"test accuracy: last parameters {last:.3f}, average {average:.3f}")
    return last, average


if __name__ == "__main__":
    main()
