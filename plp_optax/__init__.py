"""Training-efficiency methods as composable optax gradient transformations."""

import importlib
from typing import Any

from plp_optax._adaptive_window import AdaptiveWindowState, adaptive_window
from plp_optax._affine_window import (
    AffineWindowState,
    affine_window,
    average_coefficients,
    effective_rate_multiplier,
    lookahead_coefficients,
)
from plp_optax._amplification import (
    AmplifyLayersState,
    LayerAnalysis,
    amplification_table,
    amplify_layers,
    layer_analyses,
    layer_table,
)
from plp_optax._averages import TailAverageState, averaged_params, tail_average
from plp_optax._ekf import EKFState, ekf
from plp_optax._layers import layer_names, stacked
from plp_optax._plp import plp, plp_adamw, plp_coefficients, plp_sgd
from plp_optax._selectors import Selector, all_layers, at_random, by_score, named
from plp_optax._slow_momentum import (
    EmaNesterovState,
    OuterNesterovState,
    ema_nesterov,
    outer_nesterov,
)
from plp_optax._strategy import AmplificationWindow, Stage, TrainingStrategy

__version__ = "0.1.0"

__all__ = [
    "AdaptiveWindowState",
    "AffineWindowState",
    "AmplificationWindow",
    "AmplifyLayersState",
    "EKFState",
    "EmaNesterovState",
    "LayerAnalysis",
    "OuterNesterovState",
    "Selector",
    "Stage",
    "TailAverageState",
    "TrainingStrategy",
    "adaptive_window",
    "affine_window",
    "all_layers",
    "amplification_table",
    "amplify_layers",
    "at_random",
    "average_coefficients",
    "averaged_params",
    "by_score",
    "effective_rate_multiplier",
    "ekf",
    "ema_nesterov",
    "layer_analyses",
    "layer_names",
    "layer_table",
    "lookahead_coefficients",
    "named",
    "outer_nesterov",
    "plp",
    "plp_adamw",
    "plp_coefficients",
    "plp_sgd",
    "stacked",
    "tail_average",
]


def __getattr__(name: str) -> Any:
    # linen needs flax, which is optional, and takes a second to import.
    if name == "linen":
        return importlib.import_module("plp_optax.linen")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
