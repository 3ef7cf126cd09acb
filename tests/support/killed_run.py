"""Runs train.py, and kills it at a marked place: ``killed_run.py PLACE N FLAGS...``.

SIGKILL comes the N-th time that the process is there.
"""

import itertools
import os
import signal
import sys

import pytest

import train
from training.engine.engine import Engine


def pass_by(patch, place, reached):
    """Has ``reached`` called whenever a run is at a place.

    ``step``: a step is under way, and nobody has waited for it. ``save``: a checkpoint
    is written, or renamed, but not yet on disk. ``evaluation``: before a batch.
    """

    def counting(method):
        def passed(*arguments):
            for item in method(*arguments):
                reached()
                yield item

        return passed

    def synchronise(descriptor, fsync=os.fsync):
        reached()
        fsync(descriptor)

    match place:
        case "step":
            patch.setattr(Engine, "train_steps", counting(Engine.train_steps))
        case "evaluation":
            patch.setattr(Engine, "_eval_batches", counting(Engine._eval_batches))
        case "save":
            patch.setattr(os, "fsync", synchronise)


def main():
    place, number = sys.argv[1], int(sys.argv[2])
    passages = itertools.count(1)

    def kill():
        if next(passages) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    pass_by(pytest.MonkeyPatch(), place, kill)
    sys.exit(train.main(sys.argv[3:]))


if __name__ == "__main__":
    main()
