"""The records of a run, read: each number is checked before it is used."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.errors import DamagedError
from training.layout import File
from training.settings import config as config_lib

_PARTS = ("accuracy", "error", "f1")  # in [0, 1]
_COUNTS = ("epoch", "epochs", "step", "steps", "parameters", "stage")
_AMOUNTS = ("norm", "rate", "seconds", "second")  # at least 0
_LARGEST = 1e300  # JSON has integers that no float holds
RESULT_FIELDS = (
    *("best_epoch", "epochs", "validation_loss", "test_loss", "test_accuracy"),
    *("test_top1_error", "test_top5_error", "train_seconds", "device"),
)


def read_json(path: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a JSON object of a run: a result, or facts about data.

    Raises:
      DamagedError: If the file is absent or damaged, or lacks a field that it needs.
    """
    fields = config_lib.read_object(path, kind=DamagedError)
    _check(path, fields, needs)
    return fields


def read_facts(path: Path) -> dict[str, Any]:
    """Reads a ``dataset.json``; see :attr:`training.data.Dataset.facts`.

    Raises:
      DamagedError: If the file is absent or damaged.
    """
    needs = ("num_classes", "mean", "std", "image_shape", "label_names")
    facts = read_json(path, needs)
    names, shape = facts["label_names"], facts["image_shape"]
    mean, std = facts["mean"], facts["std"]
    sound = {
        "label_names": _is_list(names, str) and len(names) == facts["num_classes"] > 1,
        "image_shape": _is_list(shape, int)
        and len(shape) == 3
        and min(shape) > 0
        and max(shape) < 2**31,
        "mean": _is_list(mean, float) and all(0 <= x <= 1 for x in mean),
        "std": _is_list(std, float) and all(0 < x <= 1 for x in std),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise DamagedError(f"{path} is damaged ({name} is {_short(facts[name])})")
    if not len(mean) == len(std) == shape[2]:
        raise DamagedError(f"{path} is damaged (mean and std are not one a channel)")
    return facts


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a work directory's ``metrics.jsonl``, one dict an epoch.

    Raises:
      DamagedError: If the file is absent or damaged.
    """
    path = Path(workdir) / File.METRICS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        history = [json.loads(line) for line in lines]
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error})") from error
    for number, metrics in enumerate(history, 1):
        if not isinstance(metrics, dict) or metrics.get("epoch") != number:
            raise DamagedError(
                f"{path} is damaged (line {number} is not epoch {number})"
            )
        _check(path, metrics)
    return history


def without_nan(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with None for numbers that are not finite, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def _check(path: Path, fields: dict[str, Any], needs: Sequence[str] = ()) -> None:
    """Raises DamagedError if a field is missing, or is not what its name says."""
    if missing := [name for name in needs if name not in fields]:
        raise DamagedError(f"{path} has no {missing[0]}: it is damaged")
    for name, value in fields.items():
        kind = name.rpartition("_")[2]
        is_number = _is(value, float) and abs(value) < _LARGEST  # and not NaN
        is_amount = is_number and value >= 0
        is_sound = {
            # None is a number that is not finite, which JSON does not have.
            "loss": value is None or is_number,
            **dict.fromkeys(_PARTS, value is None or (is_amount and value <= 1)),
            **dict.fromkeys(_AMOUNTS, value is None or is_amount),
            **dict.fromkeys(_COUNTS, is_amount and _is(value, int)),
            "device": isinstance(value, str),
        }.get(kind, True)
        if not is_sound:
            raise DamagedError(f"{path} is damaged ({name} is {_short(value)})")


def _is(value: Any, kind: type) -> bool:
    kinds = (int, float) if kind is float else kind
    return isinstance(value, kinds) and not isinstance(value, bool)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(_is(one, kind) for one in value)


def _short(value: Any) -> str:
    return json.dumps(value)[:40]
