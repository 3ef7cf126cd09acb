"""Runs train.py, and kills it at a marked place: ``killed_run.py PLACE N FLAGS...``.

PLACE is ``step``, ``save`` or ``evaluation``; SIGKILL comes the N-th time that the
process is there.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable

import train
from training.engine.engine import Engine


def pass_by(reached: Callable[[str], None]) -> None:
    """Calls ``reached`` with the name of each place that a run reaches."""
    compile_, batches, fsync = Engine.compile, Engine._eval_batches, os.fsync

    def compiled(engine):
        compile_(engine)
        train_call = engine.train_call

        def call(*arguments):
            results = train_call(*arguments)  # under way: nobody has waited for it
            reached("step")
            return results

        engine.train_call = call
        return engine

    def evaluated(engine, part):
        for batch in batches(engine, part):
            reached("evaluation")
            yield batch

    def synchronised(descriptor):
        reached("save")  # a checkpoint is written, or renamed, but not yet on disk
        fsync(descriptor)

    Engine.compile, Engine._eval_batches = compiled, evaluated
    os.fsync = synchronised


def main() -> None:
    place, number = sys.argv[1], int(sys.argv[2])
    passages = itertools.count(1)

    def kill(here):
        if here == place and next(passages) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    pass_by(kill)
    sys.exit(train.main(sys.argv[3:]))


if __name__ == "__main__":
    main()
