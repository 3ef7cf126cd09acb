"""A small transformer that predicts the next character of Python's documentation."""

import functools
import pydoc_data.topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

CONTEXT, BATCH = 32, 8
WIDTH, HEADS, LAYERS = 32, 2, 2
HELD_OUT = 0.1  # the end of the text


@functools.cache
def text() -> tuple[np.ndarray, np.ndarray]:
    """The text that ``help()`` shows, as codes: for training, and held out."""
    whole = "\n".join(pydoc_data.topics.topics.values())
    _, codes = np.unique(np.array(list(whole)), return_inverse=True)
    cut = round(len(codes) * (1 - HELD_OUT))
    return codes[:cut].astype(np.int32), codes[cut:].astype(np.int32)


def data(evaluated: int = 128) -> tuple[jax.Array, jax.Array]:
    """The training text, (characters,); held-out windows, (evaluated, CONTEXT + 1)."""
    train, held_out = text()
    starts = np.linspace(0, len(held_out) - CONTEXT - 1, evaluated).astype(int)
    windows = held_out[starts[:, None] + np.arange(CONTEXT + 1)]
    return jnp.asarray(train), jnp.asarray(windows)


def init(key: jax.Array, width: int = WIDTH, layers: int = LAYERS) -> Any:
    """Parameters."""
    codes = 1 + max(part.max() for part in text())
    keys = iter(jax.random.split(key, 3 + 4 * layers))

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return scale / np.sqrt(shape[0]) * jax.random.normal(next(keys), shape)

    def block() -> dict[str, jax.Array]:
        deep = 1 / np.sqrt(2 * layers)
        return {
            "attention": normal(width, 3 * width),
            "projection": normal(width, width, scale=deep),
            "expand": normal(width, 4 * width),
            "contract": normal(4 * width, width, scale=deep),
            "scales": jnp.ones((2, width)),
        }

    return {
        "embedding": 0.02 * jax.random.normal(next(keys), (codes, width)),
        "positions": 0.02 * jax.random.normal(next(keys), (CONTEXT, width)),
        "blocks": [block() for _ in range(layers)],
        "scale": jnp.ones(width),
        "head": normal(width, codes),
    }


def batch(data: Any, key: jax.Array) -> jax.Array:
    """Windows of the training text at random places: (BATCH, CONTEXT + 1)."""
    train, _ = data
    starts = jax.random.randint(key, (BATCH, 1), 0, len(train) - CONTEXT)
    return train[starts + jnp.arange(CONTEXT + 1)]


def loss(params: Any, windows: jax.Array) -> jax.Array:
    """Mean cross-entropy of the next character, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        predict(params, windows[:, :-1]), windows[:, 1:]
    )
    return losses.mean()


def predict(params: Any, codes: jax.Array) -> jax.Array:
    """Logits of the next character: (windows, CONTEXT, characters)."""
    x = params["embedding"][codes] + params["positions"]
    for block in params["blocks"]:
        first, second = block["scales"]
        x = x + _attention(rms_norm(x) * first, block)
        hidden = jax.nn.gelu(rms_norm(x) * second @ block["expand"])
        x = x + hidden @ block["contract"]
    return rms_norm(x) * params["scale"] @ params["head"]


def evaluate(params: Any, data: Any) -> jax.Array:
    """The loss on the held-out windows."""
    return loss(params, data[1])


def rms_norm(x: jax.Array) -> jax.Array:
    """Each vector divided by its root mean square."""
    return x * jax.lax.rsqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)


def _attention(x: jax.Array, block: dict[str, jax.Array]) -> jax.Array:
    heads = (x @ block["attention"]).reshape(*x.shape[:2], HEADS, -1)
    query, key, value = jnp.split(heads, 3, axis=-1)
    attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return attended.reshape(x.shape) @ block["projection"]
