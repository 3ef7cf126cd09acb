"""BEMA, GPA and PACE: literal twins, members, read-outs, precision, arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from tests.support.problems import W0, noisy_gradient, read_out, run

RATE = 0.07
STEPS = 25


def descend(link):
    return optax.chain(optax.sgd(RATE), link)


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-13)


# -- BEMA ------------------------------------------------------------------------------


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


# -- GPA -------------------------------------------------------------------------------


def gpa_twin(mu_y, mu_x, steps=STEPS):
    """The three sequences of the paper: y and x after each step."""
    x = z = W0
    ys, xs = [], []
    for t in range(steps):
        y = mu_y * x + (1 - mu_y) * z
        z = z - RATE * noisy_gradient(y, t)
        mu = mu_x(t + 1)
        x = mu * x + (1 - mu) * z
        ys.append(mu_y * x + (1 - mu_y) * z)
        xs.append(x)
    return np.stack(ys), np.stack(xs)


@pytest.mark.parametrize(
    ("mu_y", "kwargs", "mu_x"),
    [
        (0.7, {"decay": 0.9}, lambda t: 0.9),
        (0.7, {}, lambda t: 0.9967),
        (0.0, {"power": 0.0}, lambda t: 1 - 1 / t),
        (1.0, {"power": 3.0}, lambda t: 1 - 4 / (t + 3)),
    ],
)
def test_gpa_follows_the_three_sequences(mu_y, kwargs, mu_x):
    actual = read_out(descend(plp_optax.gpa(mu_y, **kwargs)), STEPS)
    for ours, expected in zip(actual, gpa_twin(mu_y, mu_x), strict=True):
        assert_equal(ours, expected)


def test_the_uniform_gpa_is_schedule_free():
    free = optax.contrib.schedule_free(optax.sgd(RATE), RATE, b1=0.9)
    expected = read_out(free, STEPS)
    actual = read_out(descend(plp_optax.gpa(0.9, power=0.0)), STEPS)
    for ours, optaxs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, optaxs, rtol=1e-6)  # its b1 is in float32


def test_gpa_with_equal_weights_is_nesterovs_momentum():
    mu = 0.8
    tx = optax.chain(optax.sgd(RATE / (1 - mu)), plp_optax.gpa(mu, decay=mu))
    assert_equal(run(tx, STEPS), run(optax.sgd(RATE, mu, nesterov=True), STEPS))


# -- PACE ------------------------------------------------------------------------------


def pace_twin(gradient, w, eta, c, kappa, b2=0.999, decay=1e-4, steps=STEPS):
    """AdamW, the pull and the average, line by line; the parts that are clipped."""
    average, m, v = w, np.zeros_like(w), np.zeros_like(w)
    params, averages, clipped = [], [], []
    for t in range(1, steps + 1):
        g = gradient(w, t - 1)
        m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g**2
        root = np.sqrt(v / (1 - b2**t)) + 1e-8
        beta = (1 + t) ** -kappa
        step = eta(t - 1) * (m / (1 - 0.9**t) / root + decay * w)
        gain = eta(t - 1) * c * beta / root
        w = w - step + np.minimum(1, gain) * (average - w)
        average = (1 - beta) * average + beta * w
        params.append(w)
        averages.append(average)
        clipped.append((gain > 1).mean())
    return np.stack(params), np.stack(averages), np.mean(clipped)


@pytest.mark.parametrize(
    ("c", "kappa", "eta"),
    [(20.0, 0.2, 0.1), (3.0, 0.7, lambda n: 0.1 / (1 + n))],
)
def test_pace_follows_the_twin(c, kappa, eta):
    schedule = eta if callable(eta) else lambda n: eta
    tx = plp_optax.pace(eta, c, power=kappa, b2=0.99, weight_decay=0.01)
    params, averages = read_out(tx, STEPS)
    *expected, clipped = pace_twin(noisy_gradient, W0, schedule, c, kappa, 0.99, 0.01)
    # optax corrects Adam's moments in float32.
    np.testing.assert_allclose(params, expected[0], rtol=1e-6)
    np.testing.assert_allclose(averages, expected[1], rtol=1e-6)
    assert 0.02 < clipped < 0.98 if c > 3 else clipped == 0


def test_paces_weight_decay_has_a_mask():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = plp_optax.pace(0.1, weight_decay=0.5, mask={"a": True, "b": False})
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], 0)


# -- Read-outs and precision -----------------------------------------------------------

LINKS = {
    "bema": lambda: descend(plp_optax.bema()),
    "gpa": lambda: descend(plp_optax.gpa(decay=0.5)),
    "pace": lambda: plp_optax.pace(0.01),
}


@pytest.mark.parametrize("make", LINKS.values(), ids=LINKS)
def test_masked_leaves_are_read_as_they_are(make):
    params = {"a": jnp.ones(3), "b": {"c": jnp.ones((2, 2))}}
    alone, tx = make(), optax.masked(make(), {"a": True, "b": False})
    gradient = jax.tree.map(jnp.ones_like, params)
    state, w = tx.init(params), params
    own, v = alone.init(params["a"]), params["a"]
    for _ in range(3):
        updates, state = tx.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
        updates, own = alone.update(gradient["a"], own, v)
        v = optax.apply_updates(v, updates)
    found = plp_optax.evaluation_params(state, w)
    np.testing.assert_array_equal(found["b"]["c"], w["b"]["c"])
    expected = plp_optax.evaluation_params(own, v)
    np.testing.assert_allclose(found["a"], expected, rtol=1e-6)
    assert (found["a"] != w["a"]).all()


def test_initial_parameters_are_asked_for():
    tx = plp_optax.bema(keep_initial=False)
    state = tx.init(jnp.ones(2))
    with pytest.raises(ValueError, match="does not keep the initial parameters"):
        plp_optax.evaluation_params(state, jnp.ones(2))
    with pytest.raises(ValueError, match="the state is of other parameters"):
        plp_optax.bema_params(state, jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="the state is of other parameters"):
        plp_optax.bema_params(state, jnp.ones(2), (jnp.ones(2), jnp.ones(2)))
