"""Every public factory, one line each: what the contract tests run over."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import plp_optax
from plp_optax import all_layers, at_random, by_score, named


class Case(NamedTuple):
    """A public factory with arguments.

    Attributes:
      factory: The public function.
      kwargs: Arguments under which it does something within 12 steps.
      needs_params: Whether its update must refuse ``params=None``.
      inject: A numeric argument that ``optax.inject_hyperparams`` may inject.
      optimizes: Whether it is an optimizer by itself, not a link of a chain.
      leads: Whether its place in a chain is the first, not the last.
      couples: Whether the update of a leaf depends on the other leaves.
      core: Whether it runs code that no other case runs. The others are left out where
        a test compiles much.
      extra: Arguments that its update needs besides gradients and parameters.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    kwargs: Mapping[str, Any]
    needs_params: bool = False
    inject: str | None = None
    optimizes: bool = False
    leads: bool = False
    couples: bool = False
    core: bool = True
    extra: Mapping[str, Any] = MappingProxyType({})

    def make(self, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation."""
        tx = self.factory(**(dict(self.kwargs) | kwargs))
        if not self.extra:
            return tx

        def update(updates, state, params=None, **extra):
            return tx.update(updates, state, params, **self.extra, **extra)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    def optimizer(self, learning_rate: float) -> optax.GradientTransformation:
        """The transformation at its place in an optimizer."""
        if self.optimizes:
            return self.make(learning_rate=learning_rate)
        if self.leads:
            return optax.chain(self.make(), optax.sgd(learning_rate))
        return optax.chain(optax.sgd(learning_rate), self.make())


_COEFFICIENTS = (0.25, 0.25, -0.5, 1.0)
_LAYERS = (("kernel", "a"), (".*", "b"))


def _amplify(inject: str | None = None, **kwargs: Any) -> Case:
    """Two layers; three epochs of three steps, the first of them the analysis epoch."""
    windows = (plp_optax.AmplificationWindow(0, 9, epoch_steps=3, factor=2.0),)
    return Case(
        plp_optax.amplify_layers,
        {"strategy": windows, "layers": _LAYERS} | kwargs,
        inject=inject,
        leads=True,
    )


def _phase(count: jax.Array) -> jax.Array:
    return (count % 5).astype(float)


CASES = {
    "affine_window": Case(
        plp_optax.affine_window,
        {
            "coefficients": lambda n: jnp.stack([0.1 * _phase(n), 1 - 0.1 * _phase(n)]),
            "period": 2,
        },
    ),
    "affine_window-snapshots": Case(
        plp_optax.affine_window,
        {"coefficients": _COEFFICIENTS, "period": 3, "store": "snapshots"},
        needs_params=True,
    ),
    # An array, so that trees of one layer, where nothing stands out, are not refused.
    "amplify_layers": _amplify("factor", select=by_score(jnp.asarray(0.5)), factor=2.0),
    "amplify_layers-g1": _amplify(
        measure="g1", select=all_layers(), factor=lambda n: 1 + n / 4
    ),
    "amplify_layers-per_weight": _amplify(
        measure="g1_per_weight",
        select=at_random(0.5),
        reselect_every=1,
        accumulator_dtype=jnp.float32,
    ),
    "amplify_layers-inner": _amplify(select=named("b"), inner=optax.scale_by_adam()),
    "monitor_layers": Case(
        plp_optax.monitor_layers,
        {"layers": _LAYERS, "decay": 0.8, "inner": optax.scale(0.5)},
        needs_params=True,
        inject="decay",
        leads=True,
    ),
    "monitor_layers-g2": Case(
        plp_optax.monitor_layers,
        {"layers": _LAYERS, "measure": "g2", "window": 3},
        needs_params=True,
        leads=True,
    ),
    "noise_adaptive_rates": Case(
        plp_optax.noise_adaptive_rates,
        {"layers": _LAYERS, "alpha": 0.5, "decay": 0.8},
        needs_params=True,
        inject="alpha",
        leads=True,
        couples=True,
    ),
    "plp": Case(
        plp_optax.plp,
        {
            **{"active": lambda n: n >= 4, "window": 4, "fit": "least_squares"},
            "accumulator_dtype": jnp.float32,
        },
        inject="step",
        core=False,
    ),
    "plp_sgd": Case(
        plp_optax.plp_sgd,
        {"learning_rate": 0.05, "weight_decay": 0.01, "momentum": 0.5},
        needs_params=True,
        inject="learning_rate",
        optimizes=True,
        core=False,
    ),
    "plp_adamw": Case(
        plp_optax.plp_adamw,
        {"learning_rate": 0.05},
        needs_params=True,
        inject="learning_rate",
        optimizes=True,
        core=False,
    ),
    "lookahead": Case(
        plp_optax.lookahead,
        {"sync_period": 3, "slow_step_size": 0.5},
        inject="slow_step_size",
    ),
    # Regularised, so that rounding is not amplified.
    "anderson": Case(
        plp_optax.anderson,
        {"history": 3, "regularization": 0.1},
        inject="regularization",
        couples=True,
    ),
    "anderson-restarted": Case(
        plp_optax.anderson,
        {"history": 3, "period": 4, "regularization": 0.1, "min_signal": -0.9},
        inject="min_signal",
        couples=True,
    ),
    "ema_nesterov": Case(
        plp_optax.ema_nesterov,
        {"extrapolation": lambda n: 0.5 / (1 + n.astype(float)), "decay": 0.8},
        inject="decay",
    ),
    "outer_nesterov": Case(
        plp_optax.outer_nesterov,
        {"outer_rate": 0.7, "momentum": 0.5, "period": 3},
        inject="outer_rate",
    ),
    "tail_average": Case(plp_optax.tail_average, {"decay": 0.5}, inject="decay"),
    "bema": Case(
        plp_optax.bema,
        {"power": 0.4, "every": 2, "start": 3},
        needs_params=True,
        inject="power",
    ),
    "bema-given": Case(
        plp_optax.bema, {"keep_initial": False, "lag": 2.0}, inject="lag"
    ),
    "gpa": Case(plp_optax.gpa, {"decay": 0.8}, inject="decay"),
    "gpa-uniform": Case(plp_optax.gpa, {"power": 0.0}, inject="power"),
    "pace": Case(
        plp_optax.pace,
        {"learning_rate": 0.05, "pull": 1.0},
        needs_params=True,
        inject="learning_rate",
        optimizes=True,
    ),
    # Its gradients are the Jacobian of one output.
    "ekf": Case(
        plp_optax.ekf,
        {"measurement_noise": 0.3, "process_noise": 0.01, "forgetting": 0.97},
        inject="measurement_noise",
        leads=True,
        couples=True,
        extra={"innovation": np.float32(0.5)},
    ),
}
