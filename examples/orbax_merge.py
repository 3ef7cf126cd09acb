"""Merges Orbax checkpoints into what a decay of the learning rate would have given.

python examples/orbax_merge.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import plp_optax


def merged(directory: Path, over: float) -> optax.Params:
    """The parameters after a linear decay over the last part of the run."""
    with ocp.CheckpointManager(directory) as manager:
        steps = sorted(manager.all_steps())
        args = ocp.args.StandardRestore()
        params = [manager.restore(step, args=args)["params"] for step in steps]
    return plp_optax.merge(params, np.diff([0, *steps]), decay="linear", over=over)


def loss(params: optax.Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error."""
    return jnp.mean((x @ params["w"] - y) ** 2)


def train(directory: Path, x: np.ndarray, y: np.ndarray) -> None:
    """A loop at a constant rate that saves a checkpoint every 20 steps."""
    params, tx, rng = {"w": jnp.zeros(10)}, optax.sgd(0.05), np.random.default_rng(1)
    state, gradient = tx.init(params), jax.jit(jax.grad(loss))
    options = ocp.CheckpointManagerOptions(save_interval_steps=20)
    with ocp.CheckpointManager(directory, options=options) as manager:
        for step in range(1, 401):
            batch = rng.integers(len(x), size=8)
            updates, state = tx.update(gradient(params, x[batch], y[batch]), state)
            params = optax.apply_updates(params, updates)
            saved = {"params": params, "opt_state": state}
            manager.save(step, args=ocp.args.StandardSave(saved))


def main() -> dict[float, float]:
    """Returns validation losses by length of the decay; 0.05 is the last one's."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 10)).astype(np.float32)
    y = (x @ rng.standard_normal(10) + rng.standard_normal(1000)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), x[:800], y[:800])
        ends = {over: merged(Path(folder), over) for over in (0.05, 0.2, 0.5)}
    losses = {over: float(loss(w, x[800:], y[800:])) for over, w in ends.items()}
    return losses


if __name__ == "__main__":
    print(main())
