"""Trains an image classifier and records the run in a work directory.

python train.py                                         # digits, in a minute
python train.py --dataset cifar100 --preset plp-paper   # the paper's protocol
python train.py --help
"""

import contextlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from training.errors import UserError
from training.settings import config


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = [argument for argument in argv if argument != "--overwrite"]
    resume = f"resume with\n  {shlex.join(['python', 'train.py', *arguments])}"
    try:
        configs = config.parse(argv)
        if configs[0].distributed or configs[0].coordinator_address:
            print(f"if a process is lost, {resume}", flush=True)
        with contextlib.suppress(OSError):  # of a full disk, which ends no run
            print("importing JAX", flush=True)
        # Imported once the flags make sense, since it takes seconds.
        from training import recipe
        from training.engine import parallel

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # for names that it cannot show

        parallel.split_cpu(configs[0])
        recipe.train(configs)
    except BrokenPipeError:  # the reader of --help has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        complain(f"train.py: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        number = getattr(interrupt, "signal", None)
        stopped = "stopped and saved" if number else "stopped"
        complain(f"\ntrain.py: {stopped}: {resume}")
        return 128 + (number or signal.SIGINT)
    return 0


def complain(text: str) -> None:
    """Prints to standard error, which may have gone away with the terminal."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    code = main()
    if code > 128:
        # The compiler's threads may be at work, and an orderly exit would crash on
        # them. Everything that is recorded is on disk.
        os._exit(code)
    sys.exit(code)
