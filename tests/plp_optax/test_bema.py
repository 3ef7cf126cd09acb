"""BEMA: a literal twin, its members, read-outs."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from tests.support.problems import RATE, W0, descend, read_out, run

STEPS = 25


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-13)


def bema_twin(path, kappa, eta, rho, gamma, phi, tau):
    """Algorithm 1 on w_0, w_1, ...; what it holds after its updates, by the step."""
    w_0 = ema = path[tau]
    found = {}
    for t in range(tau + 1, len(path)):
        if (t - tau) % phi == 0:
            alpha, beta = (rho + gamma * t) ** -eta, (rho + gamma * t) ** -kappa
            ema = (1 - beta) * ema + beta * path[t]
            found[t] = ema + alpha * (path[t] - w_0)
    return found


@pytest.mark.parametrize(
    ("kappa", "eta", "rho", "gamma", "phi", "tau", "keep_initial"),
    [
        (0.5, 0.2, 10.0, 1.0, 1, 0, True),
        (0.7, 0.4, 2.0, 0.5, 3, 0, False),
        (0.3, 1.0, 1.0, 2.0, 4, 5, True),
    ],
)
def test_bema_follows_the_papers_algorithm(
    kappa, eta, rho, gamma, phi, tau, keep_initial
):
    tx = plp_optax.bema(
        kappa,
        **{"bias_power": eta, "lag": rho, "multiplier": gamma, "every": phi},
        **{"start": tau, "keep_initial": keep_initial},
    )
    plain = np.concatenate([W0[None], run(optax.sgd(RATE), STEPS)])

    def read(state, w):
        initial = None if keep_initial else jnp.asarray(plain[tau])
        return plp_optax.bema_params(state, w, initial)

    params, averages = read_out(descend(tx), STEPS, read)
    assert_equal(params, plain[1:])
    found = bema_twin(plain, kappa, eta, rho, gamma, phi, tau)
    assert len(found) >= 5
    for t, expected in found.items():
        assert_equal(averages[t - 1], expected)
    for t in range(1, tau + 1):
        assert_equal(averages[t - 1], plain[t])


def test_bema_between_its_updates_corrects_the_last_average():
    tx = plp_optax.bema(every=4)
    params, averages = read_out(descend(tx), 7)
    age = 10.0 + 4
    ema = W0 + age**-0.5 * (params[3] - W0)
    assert_equal(averages[6], ema + age**-0.2 * (params[6] - W0))
    assert_equal(averages[2], W0)  # nothing was averaged yet


def test_bema_without_a_correction_is_an_exponential_average():
    params, averages = read_out(descend(plp_optax.bema(0.6, bias_power=None)), STEPS)
    average = W0
    for t, (w, actual) in enumerate(zip(params, averages, strict=True), 1):
        average = average + (10.0 + t) ** -0.6 * (w - average)
        assert_equal(actual, average)


def test_initial_parameters_are_asked_for():
    tx = plp_optax.bema(keep_initial=False)
    state = tx.init(jnp.ones(2))
    with pytest.raises(ValueError, match="does not keep the initial parameters"):
        plp_optax.evaluation_params(state, jnp.ones(2))
    with pytest.raises(ValueError, match="the state is of other parameters"):
        plp_optax.bema_params(state, jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="the state is of other parameters"):
        plp_optax.bema_params(state, jnp.ones(2), (jnp.ones(2), jnp.ones(2)))
