"""Timing arms in turn, and writing records."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from training import records

RECORDS = Path(__file__).parent / "records"


def alternate(
    arms: Mapping[str, Callable[[], Any]], *, rounds: int, repeats: int | Mapping = 1
) -> dict[str, np.ndarray]:
    """Times each arm once a round, all in turn, after an untimed round.

    A machine's speed drifts; ratios of arms within a round drift much less than
    times.

    Args:
      arms: Functions of no arguments whose results can be waited for.
      rounds: How many rounds are timed.
      repeats: Calls of an arm in a round; one number, or one an arm.

    Returns:
      For each arm the seconds of a call, one value a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, arm in arms.items():
            calls = repeats if isinstance(repeats, int) else repeats[name]
            start = time.perf_counter()
            for _ in range(calls):
                result = arm()
            jax.block_until_ready(result)
            if round_:
                seconds[name].append((time.perf_counter() - start) / calls)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, np.ndarray], arm: str, peer: str) -> dict[str, float]:
    """Median and quartiles of an arm's time over a peer's, round by round."""
    low, median, high = np.quantile(seconds[arm] / seconds[peer], [0.25, 0.5, 0.75])
    return {"median": median, "low": low, "high": high}


def write_record(name: str, fields: Mapping[str, Any], out: Path | None) -> Path:
    """Writes a record with hardware, versions and commit beside the figures."""
    path = out or RECORDS / f"{name}-{jax.default_backend()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        **records.provenance(),
        **fields,
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()
