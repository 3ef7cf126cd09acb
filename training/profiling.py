"""A trace of what the devices do."""

import contextlib
from pathlib import Path

import jax

DIRECTORY = "profile"


def trace(workdir: Path, on: bool) -> contextlib.AbstractContextManager[None]:
    """Within it, if on, everything is traced to ``workdir/profile``.

    TensorBoard's profiler and Perfetto (ui.perfetto.dev) show it.
    """
    if not on:
        return contextlib.nullcontext()
    return jax.profiler.trace(str(workdir / DIRECTORY), create_perfetto_trace=True)
