"""Learning-rate schedules and chains, against their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from tests.support import reference
from tests.support.problems import W0, jitted, noisy_gradient, run
from training.engine import plateau
from training.engine.optimizer import make_optimizer, make_plan, make_schedule
from training.errors import ConfigError
from training.settings.averages import TailAverage
from training.settings.config import resolve
from training.settings.plan import Plan


def schedule(steps_per_epoch=10, epochs=10, **fields):
    config = resolve({"epochs": epochs, **fields})
    return make_schedule(config, make_plan(config, steps_per_epoch))


@pytest.mark.parametrize("name", ["cosine", "cyclic", "step", "constant", "plateau"])
def test_rates_are_float64_where_that_is_enabled(name):
    """Although optimizers count in int32."""
    f = schedule(schedule=name, learning_rate=0.1, warmup_epochs=3)
    with jax.enable_x64(True):
        rates = [f(jnp.int32(i)) for i in (0, 7, 30, 99)]
        assert {rate.dtype for rate in rates} == {jnp.dtype("float64")}
        assert float(rates[1]) == pytest.approx(8 / 31 * 0.1, rel=1e-14)
        assert [float(rate) for rate in rates] == [f(i) for i in (0, 7, 30, 99)]
    assert f(jnp.int32(7)).dtype == jnp.float32


def test_the_papers_schedule():
    """One epoch of warm-up to 0.001, then up to 0.002 in 2,000 steps, and back."""
    rates = {"learning_rate": 0.001, "max_learning_rate": 0.002}
    f = schedule(steps_per_epoch=312, schedule="cyclic", **rates)
    warmup = np.array([f(i) for i in range(313)])
    np.testing.assert_allclose(np.diff(warmup), 0.001 / 313, rtol=1e-3)
    np.testing.assert_allclose(warmup[[0, -1]], [0.001 / 313, 0.001], rtol=1e-5)
    turning_points = [float(f(312 + i)) for i in (0, 1000, 2000, 3000, 4000, 6000)]
    np.testing.assert_allclose(
        turning_points, [0.001, 0.0015, 0.002, 0.0015, 0.001, 0.002], rtol=1e-5
    )


def test_constant_step_and_cosine():
    constant = schedule(schedule="constant", warmup_epochs=0, learning_rate=0.3)
    assert {float(constant(i)) for i in (0, 50, 99)} == {0.3}
    step = schedule(schedule="step", warmup_epochs=0, learning_rate=1.0)
    np.testing.assert_allclose(
        [step(i) for i in (29, 31, 59, 61, 79, 81)],
        [1, 0.2, 0.2, 0.04, 0.04, 0.008],
        rtol=1e-5,
    )
    cosine = schedule(schedule="cosine", warmup_epochs=2, learning_rate=0.4)
    np.testing.assert_allclose(
        [cosine(20 + i) for i in (0, 20, 40, 80)],
        [0.2 * (1 + math.cos(math.pi * i / 80)) for i in (0, 20, 40, 80)],
        atol=1e-6,
    )


def test_onecycle_rises_to_its_peak_and_falls_to_almost_nothing():
    """The extremes of PyTorch's OneCycleLR; between them half a cosine."""
    f = schedule(schedule="onecycle", learning_rate=0.5)
    rates = np.array([f(i) for i in range(101)])
    np.testing.assert_allclose(rates[[0, 30, 100]], [0.02, 0.5, 2e-6], rtol=1e-4)
    np.testing.assert_allclose(rates[[15, 65]], [0.26, 0.25], rtol=1e-4)
    assert (np.diff(rates[:31]) > 0).all()
    assert (np.diff(rates[30:]) < 0).all()
    assert schedule(schedule="onecycle", steps_per_epoch=1, epochs=1)(0) > 0


def test_a_run_shorter_than_its_warm_up_stays_in_it():
    f = schedule(steps_per_epoch=5, epochs=1, warmup_epochs=2, learning_rate=0.6)
    rates = [float(f(i)) for i in range(5)]
    np.testing.assert_allclose(rates, np.arange(1, 6) * 0.1, rtol=1e-6)


# Replaced by a strategy.
UNSET = dict.fromkeys(("learning_rate", "schedule", "warmup_epochs"))


def chain(**fields):
    constant = {"learning_rate": 0.05, "schedule": "constant", "warmup_epochs": 0}
    config = resolve(constant | fields)
    return make_optimizer(config, make_plan(config, steps_per_epoch=3))


@pytest.mark.parametrize(
    ("fields", "jump", "k", "period"),
    [
        ({"method": "sgd", "optimizer": "nesterov"}, None, 1, 1),
        (
            {"method": "plp", "plp_step": 2.0, "plp_window": 4, "plp_period": 5},
            lambda w, _: reference.predict_midpoint(w, 2.0),
            4,
            5,
        ),
        (
            {"method": "plp", "plp_fit": "least_squares"},
            lambda w, _: reference.predict_least_squares(w, 1.0),
            3,
            4,
        ),
        (
            {"method": "lookahead", "lookahead_alpha": 0.25},
            lambda w, _: w[0] + 0.25 * (w[-1] - w[0]),
            5,
            5,
        ),
        ({"method": "average"}, lambda w, _: np.mean(w[1:], axis=0), 3, 4),
    ],
)
def test_methods_follow_their_definitions(fields, jump, k, period):
    """L2 decay into the gradient, momentum, rate, and the method last."""
    expected = reference.train(
        W0,
        noisy_gradient,
        reference.MomentumSGD(0.05, 0.8, "optimizer" in fields, 0.01),
        12,
        jump=jump,
        k=k,
        period=period,
    )
    tx = chain(momentum=0.8, weight_decay=0.01, **fields)
    np.testing.assert_allclose(run(tx, 12), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("fields", "link"),
    [
        ({"anderson_history": 3}, plp_optax.anderson(3)),
        (
            {"anderson_history": 3, "anderson_period": 4, "anderson_min_signal": 0.2},
            plp_optax.anderson(3, period=4, min_signal=0.2),
        ),
        (
            {"extrapolation": 0.4, "extrapolation_decay": 0.8, "epochs": 4},
            plp_optax.ema_nesterov(lambda count: 0.4 * (1 - count / 12), decay=0.8),
        ),
        (
            {"outer_rate": 0.5, "outer_momentum": 0.6, "outer_period": 3},
            plp_optax.outer_nesterov(0.5, momentum=0.6, period=3),
        ),
    ],
    ids=["anderson", "anderson-cycles", "ema-nesterov", "outer-nesterov"],
)
def test_predictors_follow_the_optimizer(fields, link, request):
    """The library's, which have twins of their own; three steps are an epoch."""
    method = request.node.callspec.id.removesuffix("-cycles")
    tx = chain(method=method, momentum=0.8, weight_decay=0.01, **fields)
    expected = optax.chain(
        optax.add_decayed_weights(0.01), optax.sgd(0.05, momentum=0.8), link
    )
    np.testing.assert_allclose(run(tx, 12), run(expected, 12), rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "rho", "start"),
    [
        ({"average": "power", "average_power": 3.0}, lambda n: 4 / (n + 3), 0.0),
        ({"average": "ema", "average_decay": 0.8}, lambda n: 0.2 / (1 - 0.8**n), 0.0),
        ({"average": "mean"}, lambda n: 1 / n, 0.5),
    ],
)
def test_the_average_is_its_recursion_after_a_part_of_the_run(fields, rho, start):
    """Of the parameters after prediction."""
    with jax.enable_x64(True):
        fields |= {"average_start": start, "method": "plp"}
        tx = chain(**fields, epochs=4)  # 12 steps
        plain = chain(method="plp", average="none", epochs=4)
        np.testing.assert_array_equal(run(tx, 12), run(plain, 12))
        w, state = jnp.asarray(W0), tx.init(jnp.asarray(W0))
        own, plan = TailAverage(start=start), Plan(3, 12, 12, seed=0, strategy=None)
        average = w
        for count in range(12):
            updates, state = tx.update(noisy_gradient(w, count), state, w)
            w = optax.apply_updates(w, updates)
            n = count + 1 - round(12 * start)
            average = average + rho(n) * (w - average) if n > 0 else w
            assert own.steps(state, plan) == max(n, 0)
        averaged = plp_optax.averaged_params(state, w)
    np.testing.assert_allclose(averaged, average, rtol=1e-9)


@pytest.mark.parametrize(
    "optimizer", ["adam", "adamw", "rmsprop", "adagrad", "adadelta"]
)
def test_other_optimizers_lower_a_loss_and_decay_weights(optimizer):
    tx = chain(optimizer=optimizer, method="plp")
    w = jnp.array([1.0, -1.0])
    state = tx.init(w)
    for _ in range(20):
        updates, state = tx.update(2 * w, state, w)
        w = optax.apply_updates(w, updates)
    assert jnp.sum(w**2) < 2.0
    # Without a gradient only decay is left to move the weights.
    tx = chain(optimizer=optimizer, method="sgd", weight_decay=0.1)
    w = jnp.ones(2)
    updates, _ = tx.update(jnp.zeros(2), tx.init(w), w)
    assert jnp.all(updates < 0)
    if optimizer == "adamw":  # decoupled, and not in the gradient, too
        np.testing.assert_allclose(updates, -0.05 * 0.1, rtol=1e-6)
    tx = chain(optimizer=optimizer, method="sgd", weight_decay=0.0)
    updates, _ = tx.update(jnp.zeros(2), tx.init(w), w)
    assert not jnp.any(updates)


def test_momentum_falls_while_the_cyclic_rate_rises():
    """As PyTorch's CyclicLR: 0.9 at the lower rate, 0.8 at the peak."""
    tx = chain(
        method="sgd",
        optimizer="nesterov",
        schedule="cyclic",
        learning_rate=0.02,
        max_learning_rate=0.04,
        cycle_steps=4,
        cycle_momentum=True,
        warmup_epochs=1,
        weight_decay=0.0,
    )
    rates = [0.005, 0.01, 0.015, *np.interp(range(9), [0, 4, 8], [0.02, 0.04, 0.02])]
    momenta = [0.9] * 3 + [*np.interp(range(9), [0, 4, 8], [0.9, 0.8, 0.9])]
    twin, w, expected = reference.MomentumSGD(0, 0, nesterov=True), W0, []
    for count in range(12):
        twin.learning_rate, twin.momentum = rates[count], momenta[count]
        w = twin.step(w, noisy_gradient(w, count), count)
        expected.append(w)
    np.testing.assert_allclose(run(tx, 12), expected, rtol=1e-10)


def test_a_plateau_divides_the_rate_by_ten():
    """After so many losses in a row that are not below the lowest before."""
    method = "plp"
    fields = {"schedule": "plateau", "plateau_patience": 2, "method": method}
    tx, plain = chain(**fields), chain(method=method)
    losses = [3.0, 2.0, 2.0, 2.5, 1.9, 1.9, 1.9, math.nan, 5.0]
    scales = [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001]
    w, g = jnp.ones(3), jnp.arange(3.0)
    state, plain_state = tx.init(w), plain.init(w)
    assert plateau.scale(state) == plateau.scale(plain_state) == 1
    for loss, scale in zip(losses, scales, strict=True):
        state = plateau.observe(state, loss, patience=2, window=1)
        assert plateau.scale(state) == pytest.approx(scale, rel=1e-6)
        assert plateau.drops(state) == round(-math.log10(scale))
    # The prediction follows the rate, so that its window sees it.
    for _ in range(5):
        updates, state = tx.update(g, state, w)
        expected, plain_state = plain.update(g, plain_state, w)
        np.testing.assert_allclose(updates, 0.001 * expected, rtol=1e-5)


def test_a_plateau_compares_means_over_a_window():
    """Of two epochs each: patience 4 is two means in a row that are not lower."""
    fields = {"plateau_patience": 4, "plateau_window": 2}
    state = chain(schedule="plateau", **fields).init(jnp.ones(3))
    losses = [3.0, 1.0, 1.0, 2.9, 0.5, 3.6, 2.2, 1.9, 1.0, 0.9]
    means = np.reshape(losses, (-1, 2)).mean(1)
    assert list(means[1:] < means[0]) == [True, False, False, True]
    found = []
    for loss in losses:
        state = plateau.observe(state, loss, patience=4, window=2)
        found.append(plateau.drops(state))
    assert found == [0] * 7 + [1] * 3


def test_lars_scales_the_step_to_the_norm_of_the_weights():
    """Equation 6 of arXiv 1708.03888, with optax's coefficient of 0.001."""
    decay, w, velocity, expected = 0.01, W0, np.zeros_like(W0), []
    for count in range(4):
        g = noisy_gradient(w, count) + decay * w
        step = 0.05 * 0.001 * np.linalg.norm(w) / np.linalg.norm(g) * g
        velocity = 0.8 * velocity + step
        w = w - velocity
        expected.append(w)
    tx = chain(optimizer="lars", momentum=0.8, weight_decay=decay, method="none")
    np.testing.assert_allclose(run(tx, 4), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("fields", "clip"),
    [
        ({"method": "amplify+plp"}, lambda g: g),
        (
            {"clip_norm": 0.5, "clip_value": 0.2},
            lambda g: np.clip(g * min(1, 0.5 / np.linalg.norm(g)), -0.2, 0.2),
        ),
    ],
    ids=["predicted", "clipped"],
)
def test_gradients_are_amplified_then_clipped_before_decay_and_momentum(fields, clip):
    """All layers times 3 from the second epoch; the jump comes after the optimizer."""

    def gradient(w, count):
        amplified = (3.0 if count >= 3 else 1.0) * noisy_gradient(w, count)
        return clip(amplified) + 0.03 * np.sign(w)

    expected = reference.train(
        W0,
        gradient,
        reference.MomentumSGD(0.05, 0.8, weight_decay=0.01),
        12,
        jump=(lambda w, _: reference.predict_midpoint(w, 1.0))
        if "method" in fields
        else None,
        k=3,
        period=4,
    )
    tx = chain(
        **{"method": "amplify", "strategy": "[(4, 0.05, 1, 3.0)]", **UNSET}
        | {"amplify_select": "all", "momentum": 0.8, "weight_decay": 0.01, "l1": 0.03}
        | fields
    )
    with jax.enable_x64(True):
        tx = jitted(tx)
        params = {"kernel": jnp.asarray(W0)}
        state = tx.init(params)
        for count, value in enumerate(expected):
            w = np.asarray(params["kernel"])
            raw = {"kernel": jnp.asarray(noisy_gradient(w, count))}
            updates, state = tx.update(raw, state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params["kernel"], value, rtol=1e-10)


@pytest.mark.parametrize(
    ("optimizer", "inner"),
    [("sgd", None), ("sgd", True), ("adamw", None), ("adamw", False)],
)
def test_the_updates_of_scale_invariant_optimizers_are_amplified(optimizer, inner):
    """And the gradients of others, unless --amplify-inner says otherwise."""
    fields = {"optimizer": optimizer, "weight_decay": 0.0, **UNSET}
    fields |= {"strategy": "[(4, 0.05, 1, 3.0)]"}
    plain = chain(**fields | {"method": "none"})
    tx = chain(
        **fields
        | {"method": "amplify", "amplify_select": "all", "amplify_inner": inner}
    )
    w = {"kernel": jnp.ones(3)}
    state, other = tx.init(w), plain.init(w)
    of_updates = inner if inner is not None else optimizer == "adamw"
    for count in range(6):
        gradient = {"kernel": jnp.arange(1.0, 4.0) - count}
        factor = 3.0 if count >= 3 else 1.0
        given = gradient if of_updates else optax.tree.scale(factor, gradient)
        expected, other = jax.jit(plain.update)(given, other, w)
        if of_updates:
            expected = optax.tree.scale(factor, expected)
        updates, state = jax.jit(tx.update)(gradient, state, w)
        np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=1e-5)


def test_the_monitor_is_around_the_method_and_noise_adaptive_rates_scale_it():
    fields = {"method": "noise-adaptive", "noise_alpha": 0.1, "monitor_layers": True}
    tx, plain = chain(**UNSET | fields), chain(**UNSET | {"method": "none"})
    w = {name: {"kernel": jnp.ones(3)} for name in "ab"}
    state, other = tx.init(w), plain.init(w)
    for count in range(3):
        sign = (-1.0) ** count
        gradient = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": sign * jnp.ones(3)}}
        updates, state = jax.jit(tx.update)(gradient, state, w)
        expected, other = jax.jit(plain.update)(gradient, other, w)
    rates = optax.tree.get(state, "layer_rates")
    assert rates[0] > 1.4 > 0.6 > rates[1]
    for rate, name in zip(rates, "ab", strict=True):
        actual = updates[name]["kernel"] / expected[name]["kernel"]
        np.testing.assert_allclose(actual, rate, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "[(2, 0.1, 1, 2), (2, 0.1, 0, 1)]"}, "--strategy .*stage 2"),
        ({"strategy": "[(3, 0.1, 0, 1)]"}, "--method amplify: "),
        ({"epochs": 2}, "--strategy paper: "),
        (
            {"method": "plp", "plp_window": 5, "plp_period": 4},
            "^--plp-period must .* 5",
        ),
        (
            {"method": "anderson", "anderson_period": 9},
            "^--anderson-period must be at least 10",
        ),
    ],
)
def test_what_the_library_refuses_names_the_flag(fields, message):
    with pytest.raises(ConfigError, match=message):
        chain(**{"method": "amplify"} | UNSET | fields)
