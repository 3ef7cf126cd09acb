"""A small transformer with AdamW and prediction learns to sort.

A sequence of six digits, a separator, and the same digits sorted; the loss counts
the sorted part.

python examples/transformer.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import plp_optax

DIGITS, SEPARATOR, LENGTH = 10, 10, 6
BATCH, STEPS = 64, 500


class Transformer(nn.Module):
    """A decoder of two blocks, normalised before each sublayer."""

    width: int = 32
    depth: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens ``[N, T]`` to logits of the next ones ``[N, T, 10]``."""
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (2 * LENGTH, self.width)
        )
        x = nn.Embed(DIGITS + 1, self.width)(tokens) + positions[None]
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.depth):
            x += nn.MultiHeadDotProductAttention(num_heads=4)(
                nn.LayerNorm()(x), mask=mask
            )
            x += nn.Dense(self.width)(
                nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            )
        return nn.Dense(DIGITS)(nn.LayerNorm()(x))


def make_batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws tokens ``[N, 2 T]`` and the sorted digits ``[N, T]`` to be predicted."""
    digits = jax.random.randint(key, (BATCH, LENGTH), 0, DIGITS)
    ordered = jnp.sort(digits)
    separator = jnp.full((BATCH, 1), SEPARATOR)
    return jnp.concatenate([digits, separator, ordered[:, :-1]], axis=1), ordered


def main(steps: int = STEPS) -> float:
    """Trains the network; returns the share of digits that it puts right."""
    network = Transformer()
    tokens, _ = make_batch(jax.random.key(0))
    params = network.init(jax.random.key(1), tokens)
    schedule = optax.warmup_cosine_decay_schedule(0, 1e-2, steps // 10, steps)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        plp_optax.plp_adamw(schedule, weight_decay=1e-2),
    )
    state = tx.init(params)

    @jax.jit
    def train_step(params, state, key):
        tokens, ordered = make_batch(key)

        def loss_fn(params):
            logits = network.apply(params, tokens)[:, LENGTH:]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, ordered)
            return losses.mean(), jnp.mean(logits.argmax(axis=-1) == ordered)

        (loss, right), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, right

    for step in range(steps):
        key = jax.random.fold_in(jax.random.key(2), step)
        params, state, loss, right = train_step(params, state, key)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {loss:.4f}, {right:.1%} of the digits right")
    return float(right)


if __name__ == "__main__":
    main()
