"""Tuning and arms of studies that don't use the training recipe."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import optax

from experiments.study import Arm

_MOST_CONTINUATIONS = 3
Run = TypeVar("Run")


class Tuned(NamedTuple, Generic[Run]):
    """The choice of a number, such as a learning rate.

    Attributes:
      value: The chosen one.
      tried: All that were tried, ascending.
      runs: The result of each of them.
    """

    value: float
    tried: list[float]
    runs: list[Run]

    @property
    def run(self) -> Run:
        """The result of the chosen value."""
        return self.runs[self.tried.index(self.value)]


def tune(
    values: Sequence[float],
    run: Callable[[list[float]], Iterable[Run]],
    cost: Callable[[Run], Any],
    *,
    is_continued: bool = False,
) -> Tuned[Run]:
    """Chooses the value with the lowest cost; of equal ones the first tried.

    Args:
      values: Values to try, ascending; for a grid that is continued the same ratio from
        each to the next.
      run: Maps values to their results.
      cost: Maps a result to something that can be compared.
      is_continued: Whether the grid is continued, two values at a time, until the best
        one is within it.
    """
    found: dict[float, Run] = {}

    def add(tried: list[float]) -> float:
        found.update(zip(tried, run(tried), strict=True))
        return min(found, key=lambda value: cost(found[value]))

    best = add(list(values))
    low, high = values[0], values[-1]
    for _ in range(_MOST_CONTINUATIONS if is_continued else 0):
        ratio = values[1] / values[0]
        if best == high:
            new = [high * ratio, high * ratio**2]
            high = new[-1]
        elif best == low:
            new = [low / ratio**2, low / ratio]
            low = new[0]
        else:
            break
        best = add(new)
    tried = sorted(found)
    return Tuned(best, tried, [found[value] for value in tried])


class OptaxMethod(NamedTuple):
    """An optimizer, or a transformation after a base optimizer.

    Attributes:
      label: Its name in reports.
      make: Makes the transformation, from what the study says.
      base: The method that it is compared with; itself for a plain one.
      drift: How much further it moves on steady updates than its base, a number or a
        function of the part of the steps that is done. None if it has no such number:
        the ratio of the lengths of its updates is measured.
      momenta: The momenta to try.
      last_rate: Where half a cosine leads the rate, relative to its peak.
      is_average: Whether the average of the parameters is evaluated.
    """

    label: str
    make: Callable[..., optax.GradientTransformation]
    base: str
    drift: float | Callable[[np.ndarray], Any] | None = 1.0
    momenta: tuple[float, ...] = (0.0,)
    last_rate: float = 0.1
    is_average: bool = False


def arms(methods: Mapping[str, OptaxMethod]) -> tuple[Arm, ...]:
    """Each method, and its base at the method's rate times its drift."""
    found = []
    for name, method in methods.items():
        fields = {"method": name, "matched": False}
        if method.base == name:
            found.append(Arm(name, method.label, fields))
            continue
        matched = f"{name}-matched"
        label = f"matched rate of {method.label}"
        found += [
            Arm(name, method.label, fields, baseline=method.base, matched=matched),
            Arm(matched, label, {**fields, "matched": True}),
        ]
    return tuple(found)


def rounded(value: float, digits: int = 4) -> float:
    """A number with this many significant digits."""
    return float(f"{value:.{digits}g}")
