"""Keeping compiled programs from one run to the next."""

from pathlib import Path

import jax


def keep_compiled(cache_dir: str | None) -> None:
    """Turns on JAX's persistent compilation cache.

    Args:
      cache_dir: Its directory, ``"none"`` for no cache, or None for JAX's own setting
        (``JAX_COMPILATION_CACHE_DIR``) or else ``~/.cache/plp_optax``.
    """
    if cache_dir == "none":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if cache_dir is None:
        cache_dir = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    path = cache_dir or str(Path("~/.cache/plp_optax").expanduser())
    jax.config.update("jax_compilation_cache_dir", path)
