"""Reading ``--strategy``."""

import ast
from typing import Any

from training.errors import ConfigError

NAMED_STRATEGIES = ("paper", "paper-deep")


def listed_strategy(text: str) -> list[tuple[Any, ...]]:
    """Reads ``--strategy`` in the paper's notation.

    Raises:
      ConfigError: If it is not a list of tuples of numbers.
    """
    wrong = ConfigError(
        f"--strategy {text!r} is neither {' nor '.join(NAMED_STRATEGIES)} nor a "
        f"list of (end epoch, learning rate, amplify?, factor)"
    )
    try:
        stages = [tuple(stage) for stage in ast.literal_eval(text)]
        is_number = all(isinstance(n, int | float) for stage in stages for n in stage)
        is_small = is_number and all(abs(n) < 1e38 for stage in stages for n in stage)
    # Text that is nested too deeply exhausts the parser.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise wrong from error
    if not (stages and all(stages) and is_small and type(stages[-1][0]) is int):
        raise wrong
    return stages


def listed_epochs(strategy: str | None) -> Any:
    """The last epoch of a listed strategy; None for others."""
    if strategy is None or strategy in NAMED_STRATEGIES:
        return None
    return listed_strategy(strategy)[-1][0]
