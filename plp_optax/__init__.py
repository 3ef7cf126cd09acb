"""Training-efficiency methods as composable optax gradient transformations."""

import importlib
from typing import Any

from plp_optax._affine_window import (
    AffineWindowState,
    affine_window,
    average_coefficients,
    effective_rate_multiplier,
    lookahead,
    lookahead_coefficients,
)
from plp_optax._amplification import (
    AmplifyLayersState,
    LayerAnalysis,
    amplify_layers,
    layer_analyses,
)
from plp_optax._anderson import AndersonState, anderson
from plp_optax._averages import (
    TailAverageState,
    averaged_params,
    evaluation_params,
    merge,
    merge_weights,
    tail_average,
)
from plp_optax._bema import BemaState, bema, bema_params
from plp_optax._ekf import EKFState, ekf
from plp_optax._gpa import GPAState, gpa
from plp_optax._layer_table import layer_table
from plp_optax._layers import layer_names, stacked
from plp_optax._monitor import (
    LayerStatistics,
    MonitorLayersState,
    layer_statistics,
    monitor_layers,
)
from plp_optax._noise_adaptive import NoiseAdaptiveRatesState, noise_adaptive_rates
from plp_optax._pace import PaceState, pace
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
    "AffineWindowState",
    "AmplificationWindow",
    "AmplifyLayersState",
    "AndersonState",
    "BemaState",
    "EKFState",
    "EmaNesterovState",
    "GPAState",
    "LayerAnalysis",
    "LayerStatistics",
    "MonitorLayersState",
    "NoiseAdaptiveRatesState",
    "OuterNesterovState",
    "PaceState",
    "Selector",
    "Stage",
    "TailAverageState",
    "TrainingStrategy",
    "affine_window",
    "all_layers",
    "amplify_layers",
    "anderson",
    "at_random",
    "average_coefficients",
    "averaged_params",
    "bema",
    "bema_params",
    "by_score",
    "effective_rate_multiplier",
    "ekf",
    "ema_nesterov",
    "evaluation_params",
    "gpa",
    "layer_analyses",
    "layer_names",
    "layer_statistics",
    "layer_table",
    "lookahead",
    "lookahead_coefficients",
    "merge",
    "merge_weights",
    "monitor_layers",
    "named",
    "noise_adaptive_rates",
    "outer_nesterov",
    "pace",
    "plp",
    "plp_adamw",
    "plp_coefficients",
    "plp_sgd",
    "stacked",
    "tail_average",
]


def __getattr__(name: str) -> Any:
    # These need flax, which is optional, and takes a second to import.
    if name in ("linen", "nnx"):
        return importlib.import_module(f"plp_optax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
