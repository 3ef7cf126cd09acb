"""The cost of an optimizer step with and without the methods.

    python -m benchmarks.step_overhead

Memory of each optimizer's state, temporaries of its compiled step, and its time
relative to SGD with momentum, all arms alternating in one run on the parameters of a
network. A gradient of the same network is timed in the same rounds, to give the
overhead of a complete training step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import plp_optax
from benchmarks import measure

SGD = optax.sgd(0.05, momentum=0.9)
PEER = "sgd"
GRADIENT = "gradient"
LOOKAHEAD = "optax.lookahead(sgd)"
SELECT = plp_optax.by_score(1.0)  # a z-score that three layers can reach
# The benchmark's steps are all in the analysis epoch, or all before it.
WINDOWS = {
    "analysis": plp_optax.AmplificationWindow(0, 2 * 10**6, 10**6, 2.0),
    "idle": plp_optax.AmplificationWindow(10**6, 3 * 10**6, 10**6, 2.0),
}


def make_arms() -> dict[str, optax.GradientTransformation]:
    """The optimizers to compare, SGD with momentum first."""
    return {
        PEER: SGD,
        "sgd + plp": optax.chain(SGD, plp_optax.plp()),
        "sgd + plp, snapshots": optax.chain(SGD, plp_optax.plp(store="snapshots")),
        "sgd + window average": optax.chain(
            SGD,
            plp_optax.affine_window(plp_optax.average_coefficients(3), period=4),
        ),
        "sgd + lookahead window": optax.chain(
            SGD,
            plp_optax.affine_window(plp_optax.lookahead_coefficients(5), period=5),
        ),
        "sgd + ema_nesterov": optax.chain(SGD, plp_optax.ema_nesterov()),
        "sgd + outer_nesterov": optax.chain(SGD, plp_optax.outer_nesterov()),
        "sgd + tail_average": optax.chain(SGD, plp_optax.tail_average()),
        "sgd + bema": optax.chain(SGD, plp_optax.bema()),
        "sgd + gpa": optax.chain(SGD, plp_optax.gpa()),
        "sgd + anderson, restarted": optax.chain(
            SGD, plp_optax.anderson(10, period=10)
        ),
        "sgd + anderson, sliding": optax.chain(SGD, plp_optax.anderson(10)),
        # The line search would take gradients of its own.
        "optax.lbfgs": optax.lbfgs(1e-3, memory_size=10, linesearch=None),
        LOOKAHEAD: optax.lookahead(SGD, 5, 0.5),
        "adam": optax.adam(1e-3),
        "pace": plp_optax.pace(1e-3),
        "adam + plp": optax.chain(optax.adam(1e-3), plp_optax.plp()),
        **{
            f"amplify {measure}, {when} + sgd": optax.chain(
                plp_optax.amplify_layers([window], select=SELECT, measure=measure),
                SGD,
            )
            for measure in ("g1", "g1_per_weight", "g2")
            for when, window in WINDOWS.items()
        },
        **{
            f"monitor_layers {measure}, sgd": plp_optax.monitor_layers(
                SGD, measure=measure
            )
            for measure in ("g1", "g1_per_weight", "g2")
        },
        "noise_adaptive_rates, sgd": plp_optax.noise_adaptive_rates(SGD),
    }


class OptimizerStep(NamedTuple):
    """A compiled optimizer step.

    Attributes:
      run: Takes one step; returns what to wait for.
      state_bytes: Memory that lasts from step to step, parameters left out.
      temporary_bytes: Memory that a step needs while it runs.
    """

    run: Callable[[], Any]
    state_bytes: int
    temporary_bytes: int


def make_step(name: str, params: Any, gradient: Any) -> OptimizerStep:
    """Compiles an arm's step, which reuses the memory of parameters and state."""
    tx = make_arms()[name]
    held: Any = jax.tree.map(jnp.copy, params)
    if name == LOOKAHEAD:  # keeps its slow weights among the parameters
        held = optax.LookaheadParams(held, jax.tree.map(jnp.copy, held))
    params_bytes = _bytes(params)
    # optax.lbfgs starts from the parameters themselves, which are given away twice.
    carry = [held, jax.tree.map(jnp.copy, tx.init(held))]

    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, gradient).compile()

    def run() -> Any:
        carry[:] = compiled(*carry, gradient)
        return carry[0]

    memory: Any = compiled.memory_analysis()
    return OptimizerStep(run, _bytes(carry) - params_bytes, memory.temp_size_in_bytes)


def run(
    model: str = "resnet18", width: int = 64, batch_size: int = 32, rounds: int = 20
) -> dict[str, Any]:
    """Measures all arms; takes the flags, returns the figures."""
    config = measure.training_config(model=model, width=width, batch_size=batch_size)
    init, loss_fn = measure.make_loss(config, measure.synthetic(batch_size))
    variables = init()
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    grad = jax.jit(lambda params: jax.grad(loss_fn, has_aux=True)(params, batch_stats))
    gradient, _ = grad(params)
    steps = {name: make_step(name, params, gradient) for name in make_arms()}
    arms: dict[str, Callable[[], Any]] = {n: s.run for n, s in steps.items()}
    repeats = {**dict.fromkeys(arms, 5), GRADIENT: 1}
    seconds = measure.alternate(
        {**arms, GRADIENT: lambda: grad(params)}, rounds=rounds, repeats=repeats
    )
    size = _bytes(params)
    # The time that an arm adds to SGD's, over the time of a training step with SGD.
    training_step = seconds[GRADIENT] + seconds[PEER]
    return {
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "parameter_bytes": size,
        "arms": {
            name: {
                "state_copies": step.state_bytes / size,
                "temporary_copies": step.temporary_bytes / size,
                "temporary_bytes": step.temporary_bytes,
                "milliseconds": 1e3 * float(np.median(seconds[name])),
                "time_ratio": measure.quartiles(seconds[name] / seconds[PEER]),
                "training_step_overhead": float(
                    np.median((seconds[name] - seconds[PEER]) / training_step)
                ),
            }
            for name, step in steps.items()
        },
    }


def _bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


if __name__ == "__main__":
    measure.main("step_overhead", __doc__, run)
