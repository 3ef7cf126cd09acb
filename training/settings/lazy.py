"""Libraries that are imported at their first use.

JAX takes seconds to import, and flags are declared and checked without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax.numpy as jnp
    import optax

    import plp_optax

    Transformation = optax.GradientTransformation
else:
    Transformation = Any

    class _Module:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._name), attribute)

    jnp, optax, plp_optax = map(_Module, ("jax.numpy", "optax", "plp_optax"))

__all__ = ["Transformation", "jnp", "optax", "plp_optax"]
