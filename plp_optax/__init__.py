"""Training-efficiency methods as composable optax gradient transformations."""

from plp_optax._account import LayerAccount, amplification_table, layer_accounts
from plp_optax._affine_window import AffineWindowState, affine_window
from plp_optax._amplification import AmplifyLayersState, amplify_layers
from plp_optax._chains import plp_adamw, plp_sgd
from plp_optax._coefficients import (
    average_coefficients,
    drift,
    lookahead_coefficients,
    plp_coefficients,
)
from plp_optax._layers import layer_names
from plp_optax._plp import plp
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
    "LayerAccount",
    "Stage",
    "TrainingStrategy",
    "affine_window",
    "amplification_table",
    "amplify_layers",
    "average_coefficients",
    "drift",
    "layer_accounts",
    "layer_names",
    "lookahead_coefficients",
    "paper_strategy",
    "plp",
    "plp_adamw",
    "plp_coefficients",
    "plp_sgd",
]
