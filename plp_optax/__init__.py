"""Training-efficiency methods as composable optax gradient transformations."""

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
from plp_optax._static_args import static_args
from plp_optax._strategy import (
    AmplificationWindow,
    Stage,
    TrainingStrategy,
    paper_strategy,
)

__version__ = "0.1.0"

__all__ = [
    "AffineWindowState",
    "AmplificationWindow",
    "AmplifyLayersState",
    "EKFState",
    "LayerAnalysis",
    "Selector",
    "Stage",
    "TrainingStrategy",
    "affine_window",
    "all_layers",
    "amplification_table",
    "amplify_layers",
    "at_random",
    "average_coefficients",
    "by_score",
    "effective_rate_multiplier",
    "ekf",
    "layer_analyses",
    "layer_names",
    "lookahead_coefficients",
    "named",
    "paper_strategy",
    "plp",
    "plp_adamw",
    "plp_coefficients",
    "plp_sgd",
    "stacked",
    "static_args",
]
