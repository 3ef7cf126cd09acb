"""The declared flags of the training program, and values inside and outside of them."""

import math

from hypothesis import strategies as st

from training.settings import flags
from training.settings.config import Config

DECLARED = {n: one for n, one in flags.flags(Config).items() if not one.hidden}
FIELDS = sorted(DECLARED)
CHOICES = {n: one.choices for n, one in DECLARED.items() if one.choices}
NUMBERS = {n for n, one in DECLARED.items() if one.kind in (int, float)}
NUMBERS -= {"num_processes", "process_id"}  # with rules of their own, below
SWITCHES = {n for n, one in DECLARED.items() if one.kind is bool}


def context(name):
    """Choices under which a flag has a meaning."""
    only = DECLARED[name].only
    if only is None or only[1] == (None,):
        return {}
    return {**context(only[0]), only[0]: only[1][0]}


def bounds(name):
    """The ends of a number's range, and whether they belong to it."""
    one = DECLARED[name]
    limit = 2**31 if one.kind is int else 1e38
    low = (one.low, True) if math.isfinite(one.low) else (max(one.above, -limit), False)
    high = (one.high, True) if math.isfinite(one.high) else (one.below, False)
    return low, high if math.isfinite(high[0]) else (limit, False)


@st.composite
def outside(draw, name):
    """A number that a field may not be."""
    (low, has_low), (high, has_high) = bounds(name)
    if DECLARED[name].kind is float:
        below = st.floats(max_value=low, exclude_max=has_low)
        above = st.floats(min_value=high, exclude_min=has_high)
        return draw(below | above | st.just(math.nan))
    below = st.integers(max_value=int(low) - has_low)
    above = st.integers(min_value=int(high) + has_high)
    return draw(below | above | st.integers(12, 400).map(lambda n: 10**n))


@st.composite
def inside(draw, name):
    """A value that a flag may have by itself."""
    if name in CHOICES:
        return draw(st.sampled_from(list(CHOICES[name])))
    (low, has_low), (high, has_high) = bounds(name)
    if DECLARED[name].kind is int:
        return draw(st.integers(int(low) + (not has_low), int(high) - (not has_high)))
    return draw(st.floats(low, high, exclude_min=not has_low, exclude_max=not has_high))
