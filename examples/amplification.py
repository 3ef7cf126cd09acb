"""Layer-wise amplification on one's own network: the strategy, the table, the names.

python examples/amplification.py
"""

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import plp_optax

BATCH = 64
# (end epoch, learning rate, amplify?, factor): epoch 3 is analysed, 4 to 8 amplified.
STAGES = [(2, 0.05, 0, 1), (8, 0.05, 1, 2), (10, 0.01, 0, 1)]


class Network(nn.Module):
    """A perceptron with three hidden layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images ``[N, 64]`` to logits ``[N, 10]``."""
        for i in range(3):
            x = nn.relu(nn.Dense(64, name=f"hidden{i}")(x))
        return nn.Dense(10, name="head")(x)


def main() -> list[plp_optax.LayerAnalysis]:
    """Trains the network; returns what the analysis found."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    network = Network()
    params = network.init(jax.random.key(0), images[:1])["params"]
    print("layers:", ", ".join(plp_optax.layer_names(params)))

    strategy = plp_optax.TrainingStrategy(STAGES, steps_per_epoch=len(images) // BATCH)
    tx = optax.chain(
        # First: it sees raw gradients. Among four layers no z-score exceeds 1.73.
        plp_optax.amplify_layers(strategy, select=plp_optax.by_score(1.0)),
        optax.add_decayed_weights(5e-4),
        optax.sgd(strategy.learning_rate, momentum=0.9),
    )
    state = tx.init(params)

    @jax.jit
    def train_step(params, state, images, labels):
        def loss_fn(params):
            logits = network.apply({"params": params}, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean()

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng = np.random.default_rng(0)
    for epoch in range(STAGES[-1][0]):
        order = rng.permutation(len(images))
        for i in range(0, len(images) - BATCH + 1, BATCH):
            batch = order[i : i + BATCH]
            params, state, loss = train_step(
                params, state, images[batch], labels[batch]
            )
        factors = optax.tree.get(state, "factors")
        print(f"epoch {epoch + 1}: loss {loss:.4f}, factors after it {factors}")
    # Scores near the noise floor say that the gradients were mostly noise.
    print(plp_optax.layer_table(state, params))
    return plp_optax.layer_analyses(state, params)


if __name__ == "__main__":
    main()
