"""Where a result comes from: versions, device and commit."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("plp-optax", "jax", "jaxlib", "flax", "optax", "numpy")


def provenance() -> dict[str, Any]:
    """Versions, device and commit, for a record."""
    devices = jax.devices()
    return {
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def version(package: str) -> str | None:
    """The installed version of a package; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that holds this file, with ``+`` if it was changed."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
