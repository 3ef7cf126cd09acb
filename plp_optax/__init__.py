"""Training-efficiency methods as composable optax gradient transformations."""

import importlib
from typing import Any

from plp_optax._adaptive_window import AdaptiveWindowState, adaptive_window
from plp_optax._affine_window import AffineWindowState, affine_window
from plp_optax._amplification import AmplifyLayersState, amplify_layers
from plp_optax._analysis import LayerAnalysis, amplification_table, layer_analyses
from plp_optax._chains import plp_adamw, plp_sgd
from plp_optax._coefficients import (
    average_coefficients,
    effective_rate_multiplier,
    lookahead_coefficients,
    plp_coefficients,
)
from plp_optax._ekf import EKFState, ekf
from plp_optax._layers import layer_names, stacked
from plp_optax._plp import plp
from plp_optax._selectors import Selector, all_layers, at_random, by_score, named
from plp_optax._slow_momentum import (
    EmaNesterovState,
    OuterNesterovState,
    ema_nesterov,
    outer_nesterov,
)
from plp_optax._static_args import static_args
from plp_optax._strategy import (
    AmplificationWindow,
    Stage,
    TrainingStrategy,
    paper_strategy,
)
from plp_optax._tail_average import (
    TailAverageState,
    averaged_params,
    tail_average,
)

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
    "lookahead_coefficients",
    "named",
    "outer_nesterov",
    "paper_strategy",
    "plp",
    "plp_adamw",
    "plp_coefficients",
    "plp_sgd",
    "stacked",
    "static_args",
    "tail_average",
]


def __getattr__(name: str) -> Any:
    # linen needs flax, which is optional, and takes a second to import.
    if name == "linen":
        return importlib.import_module("plp_optax.linen")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
