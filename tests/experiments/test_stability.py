"""The cycle's linear map: against a slow twin, and known limits."""

import numpy as np
import pytest

import plp_optax
from experiments import stability
from experiments.stability import PLAIN, Cycle, plp_cycle
from tests.support import reference

LOOKAHEAD = Cycle(tuple(map(float, plp_optax.lookahead_coefficients(5, 0.5))), 5)
AVERAGE = Cycle((0.0, 0.5, 0.5), 3)
CYCLES = {
    "plain": PLAIN,
    "plp": plp_cycle(),
    "plp-3": plp_cycle(period=3),
    "step 2.5": plp_cycle(2.5, period=7),
    "window 2": plp_cycle(window=2),
    "regression": plp_cycle(0.7, window=5, period=6, fit="least_squares"),
    "lookahead": LOOKAHEAD,
    "average": AVERAGE,
}
each_cycle = pytest.mark.parametrize("cycle", CYCLES.values(), ids=CYCLES.keys())
each_momentum = pytest.mark.parametrize("nesterov", [False, True])


# -- the map ---------------------------------------------------------------------------


@each_momentum
@each_cycle
def test_map_is_the_twins(cycle, nesterov):
    rng = np.random.default_rng(0)
    curvature, momentum = rng.uniform(0, 3, (4, 1)), rng.uniform(0, 1, 5)
    found = stability.cycle_map(cycle, curvature, momentum, nesterov=nesterov)
    growth = stability.growth(cycle, curvature, momentum, nesterov=nesterov)
    assert found.shape == (4, 5, 2, 2)
    for i, j in np.ndindex(4, 5):
        expected = reference.cycle_map(
            curvature[i, 0],
            coefficients=list(cycle.coefficients),
            period=cycle.period,
            momentum=momentum[j],
            nesterov=nesterov,
        )
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-10, atol=1e-12)
        radius = reference.spectral_radius(expected)
        np.testing.assert_allclose(growth[i, j] ** cycle.period, radius, rtol=1e-6)


def test_a_cycle_that_is_none_is_refused():
    with pytest.raises(ValueError, match="sum"):
        stability.growth(Cycle((0.5, 0.6), 1), 0.1)
    with pytest.raises(ValueError, match="period"):
        stability.growth(Cycle((0.0, 0.0, 1.0), 1), 0.1)


# -- limits ----------------------------------------------------------------------------

NONE, HEAVY, NESTEROV = (0.0, False), (0.9, False), (0.9, True)


@pytest.mark.parametrize(
    ("cycle", "kind", "limit", "tolerance"),
    [
        (PLAIN, NONE, 2.0, 1e-6),
        (PLAIN, HEAVY, 3.8, 1e-6),
        (PLAIN, NESTEROV, 1.36, 5e-3),
        (plp_cycle(period=3), NONE, 2.38, 5e-3),
        (plp_cycle(), NONE, 2.32, 5e-3),
        (plp_cycle(period=3), HEAVY, 0.669, 5e-4),
        (plp_cycle(), HEAVY, 0.468, 5e-4),
        (plp_cycle(period=3), NESTEROV, 1.60, 5e-3),
        (plp_cycle(), NESTEROV, 1.57, 5e-3),
    ],
    ids=str,
)
def test_known_limits(cycle, kind, limit, tolerance):
    momentum, nesterov = kind
    found = stability.stability_limit(cycle, momentum, nesterov=nesterov)
    assert abs(found - limit) <= tolerance
