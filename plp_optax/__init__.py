"""Training-efficiency methods as composable optax gradient transformations."""

from plp_optax._affine_window import AffineWindowState, affine_window
from plp_optax._chains import plp_adamw, plp_sgd
from plp_optax._coefficients import (
    average_coefficients,
    drift,
    lookahead_coefficients,
    plp_coefficients,
)
from plp_optax._plp import plp

__version__ = "0.1.0"

__all__ = [
    "AffineWindowState",
    "affine_window",
    "average_coefficients",
    "drift",
    "lookahead_coefficients",
    "plp",
    "plp_adamw",
    "plp_coefficients",
    "plp_sgd",
]
