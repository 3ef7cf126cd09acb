"""Runs next to each other: those of a configuration over its seeds, and differences."""

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.errors import RunError
from training.layout import File
from training.run import records
from training.settings import config as config_lib


class Group(NamedTuple):
    """Finished runs that differ in the seed only."""

    settings: dict[str, Any]  # those that are not the default, without the seed
    results: dict[int, dict[str, Any]]  # by seed


class Paired(NamedTuple):
    """The difference of paired values: mean, and 95 % interval of Student's t."""

    n: int
    mean: float
    low: float  # NaN for a single pair
    high: float


def group(runs: Iterable[Path]) -> list[Group]:
    """Reads finished runs, and groups those of a configuration.

    Unfinished runs, and a second one of the same configuration and seed, are left out
    with a sentence on stderr.

    Raises:
      UserError: If there is none, or a file is damaged.
    """
    groups: dict[str, Group] = {}
    for path in runs:
        if not (path / File.RESULT).exists():
            print(f"{path} holds no finished run: left out", file=sys.stderr)
            continue
        fields = config_lib.read(path / File.CONFIG)
        settings = config_lib.chosen(config_lib.resolve({}, fields))
        seed = settings.pop("seed", 0)
        own = groups.setdefault(config_lib.fingerprint(settings), Group(settings, {}))
        if seed in own.results:
            print(
                f"{path} repeats the configuration and the seed of another run: left "
                f"out",
                file=sys.stderr,
            )
            continue
        own.results[seed] = records.read_json(
            path / File.RESULT, needs=["test_accuracy", "test_loss"]
        )
    if not groups:
        raise RunError("none of these holds a finished run")
    return list(groups.values())


def paired(group: Group, control: Group, name: str) -> Paired | None:
    """The difference of a result to that of the control, seed by seed.

    Returns:
      The difference; None if they have no seed in common with two finite values, or
      are of different data sets.
    """
    if group.settings.get("dataset") != control.settings.get("dataset"):
        return None
    pairs = [
        (result[name], control.results[seed][name])
        for seed, result in group.results.items()
        if seed in control.results
    ]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return interval(differences) if differences else None


def interval(values: Sequence[float]) -> Paired:
    """Mean and 95 % confidence interval of values, by Student's t."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Paired(n, mean, math.nan, math.nan)
    from scipy import stats  # takes a second to import, and few commands need it

    half = stats.t.ppf(0.975, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Paired(n, mean, mean - half, mean + half)
