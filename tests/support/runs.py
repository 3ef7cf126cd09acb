"""What tests of interrupted runs share: a kill, and when two runs are the same."""

import json

import jax
import numpy as np

from training.layout import File
from training.run.checkpoints import read
from training.run.records import read_metrics

TIMES = {"images_per_second", "train_seconds"}


class Killed(BaseException):
    """What no handler of errors sees, like SIGKILL."""


def without_times(fields):
    return {name: value for name, value in fields.items() if name not in TIMES}


def metrics_of(path):
    """The metrics of a run without times."""
    return [*map(without_times, read_metrics(path))]


def saved(path):
    return sorted((path / File.CHECKPOINTS).glob("*.msgpack"))


def arrays(path):
    """Every array of a file, by its place, as bytes."""
    return {
        jax.tree_util.keystr(place): (x.dtype, x.shape, np.asarray(x).tobytes())
        for place, x in jax.tree_util.tree_leaves_with_path(read(path).tree)
    }


def assert_same_run(a, b):
    """Bitwise the same state and best network; the same records, times apart."""
    assert saved(a)[-1].name == saved(b)[-1].name
    assert arrays(saved(a)[-1]) == arrays(saved(b)[-1])
    assert arrays(a / File.BEST) == arrays(b / File.BEST)
    assert metrics_of(a) == metrics_of(b)
    results, kept = [], []
    for path in (a, b):
        results.append(without_times(json.loads((path / "result.json").read_text())))
        names = ("layers.txt", "average.msgpack", "means/*")
        files = [file for name in names for file in path.glob(name)]
        kept.append({file.relative_to(path): file.read_bytes() for file in files})
    assert results[0] == results[1]
    assert kept[0] == kept[1]
