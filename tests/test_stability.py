"""What a cycle does on a quadratic: its linear map, and runs at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from tests import reference

PLP = plp_optax.plp_coefficients(1.0)


def radius(curvature, *, period, coefficients=PLP, **options):
    return reference.spectral_radius(
        reference.cycle_map(
            curvature, coefficients=coefficients, period=period, **options
        )
    )


def plain(curvature, **options):
    return radius(curvature, coefficients=[0.0, 1.0], period=1, **options)


def bands(unstable, top, points=1601):
    """Edges, each by bisection, of the intervals of (0, top) that are unstable."""
    grid = np.linspace(1e-3, top, points)
    flags = [unstable(x) for x in grid]
    edges = []
    for low, high, before, after in zip(grid, grid[1:], flags, flags[1:], strict=False):
        if before != after:
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (
                    (middle, high) if unstable(middle) == before else (low, middle)
                )
            edges.append(high)
    return edges


@pytest.mark.parametrize("curvature", [0.1, 0.7, 1.3, 2.0, 2.5])
def test_cycle_multiplies_the_error_by_the_closed_form(curvature):
    """r^3 + (r^2 - r)/2 with r = 1 - curvature, and once more r at period 4."""
    r = 1 - curvature
    factor = r**3 + (r**2 - r) / 2
    for period in (3, 4):
        tx = optax.chain(optax.sgd(1.0), plp_optax.plp(period=period))
        with jax.enable_x64(True):
            w = jnp.ones(())
            state = tx.init(w)
            for _ in range(period):
                updates, state = tx.update(curvature * w, state)
                w = optax.apply_updates(w, updates)
        np.testing.assert_allclose(w, factor * r ** (period - 3), rtol=1e-12)


@pytest.mark.parametrize(("period", "limit"), [(3, 2.38), (4, 2.32)])
def test_gradient_descent_bears_more_curvature_with_plp(period, limit):
    matched = plp_optax.drift(PLP, period=period)
    (edge,) = bands(lambda x: radius(x, period=period) > 1, 3.0)
    assert abs(edge - limit) < 0.005
    (edge,) = bands(lambda x: plain(x) > 1, 3.0)
    assert abs(edge - 2) < 1e-6
    (edge,) = bands(lambda x: plain(matched * x) > 1, 3.0)
    assert abs(edge - {3: 1.71, 4: 1.78}[period]) < 0.005


def test_heavy_ball_resonates_with_the_jumps():
    def edges(period):
        return bands(lambda x: radius(x, period=period, momentum=0.9) > 1, 4.0)

    np.testing.assert_allclose(edges(4), [0.468, 0.573, 0.943], atol=6e-4)
    assert abs(edges(3)[0] - 0.669) < 6e-4
    (edge,) = bands(lambda x: plain(x, momentum=0.9) > 1, 4.0)
    assert abs(edge - 3.8) < 1e-6
    for period, limit in [(4, 3.38), (3, 3.26)]:
        matched = plp_optax.drift(PLP, period=period)
        (edge,) = bands(lambda x, rate=matched: plain(rate * x, momentum=0.9) > 1, 4.0)
        assert abs(edge - limit) < 0.005


@pytest.mark.parametrize(("period", "limit"), [(4, 0.468), (3, 0.669)])
def test_plp_ahead_of_momentum_has_the_same_limits(period, limit):
    """Filters of the gradient commute: only the order of a product changes."""

    def unstable(curvature):
        # PLP's linear filter on gradients, then heavy ball, from each unit state.
        columns = []
        a = -np.cumsum(PLP)[:-1]
        for w, buffer in np.eye(2):
            jump = 0.0
            for j in range(period):
                gradient = curvature * w
                jump += a[j] * gradient if j < 3 else 0.0
                buffer = 0.9 * buffer + gradient + (jump if j == 2 else 0.0)
                w = w - buffer
            columns.append([w, buffer])
        return reference.spectral_radius(np.array(columns).T) > 1

    assert abs(bands(unstable, 1.5)[0] - limit) < 6e-4


@pytest.mark.parametrize(
    ("period", "limit", "matched_limit"), [(4, 1.57, 1.21), (3, 1.60, 1.16)]
)
def test_nesterov_does_not_turn_over(period, limit, matched_limit):
    options = {"momentum": 0.9, "nesterov": True}
    matched = plp_optax.drift(PLP, period=period)
    edge = bands(lambda x: radius(x, period=period, **options) > 1, 2.5)[0]
    assert abs(edge - limit) < 0.005
    (edge,) = bands(lambda x: plain(x, **options) > 1, 2.5)
    assert abs(edge - 1.36) < 0.006
    (edge,) = bands(lambda x: plain(matched * x, **options) > 1, 2.5)
    assert abs(edge - matched_limit) < 0.006


@pytest.mark.parametrize(
    ("momentum", "nesterov", "period", "limit"),
    [
        (0.0, False, 3, 2.38),
        (0.0, False, 4, 2.32),
        (0.9, False, 4, 0.468),
        (0.9, False, 3, 0.669),
        (0.9, True, 4, 1.57),
        (0.9, True, 3, 1.60),
    ],
)
def test_real_runs_turn_at_the_limits(momentum, nesterov, period, limit):
    """Just below the limit a run of the transformation shrinks, above it grows."""

    def growth(curvature):
        tx = plp_optax.plp_sgd(1.0, momentum, nesterov, period=period)

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(curvature * w, state)
            return (optax.apply_updates(w, updates), state), w

        w = jnp.ones(())
        _, path = jax.lax.scan(step, (w, tx.init(w)), length=300 * period)
        tail = np.abs(path).reshape(-1, period)[:, 0]
        return np.polyfit(np.arange(200), np.log(tail[100:]), 1)[0]

    with jax.enable_x64(True):
        below, above = growth(limit - 0.02), growth(limit + 0.02)
    assert below < 0 < above
    for curvature, slope in [(limit - 0.02, below), (limit + 0.02, above)]:
        expected = np.log(
            radius(curvature, period=period, momentum=momentum, nesterov=nesterov)
        )
        np.testing.assert_allclose(slope, expected, atol=0.01)
