"""PLP against the paper's equations, and what is known about it."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from tests.support import reference
from tests.support.problems import W0, noisy_gradient, run, run_tree


def twin(optimizer, steps, *, step=1.0, window=3, period=4, fit="midpoint"):
    schedule = step if callable(step) else lambda count: step
    return reference.train(
        W0,
        noisy_gradient,
        optimizer,
        steps,
        jump=lambda w, start: reference.PREDICT[fit](w, schedule(start)),
        k=window,
        period=period,
    )


@pytest.mark.parametrize(
    ("window", "period", "fit", "step", "store"),
    [
        (2, 4, "midpoint", 0.3, "folded"),
        (3, 3, "midpoint", 1.0, "snapshots"),
        (3, 4, "midpoint", lambda count: 0.25 + 0.125 * count, "folded"),
        (4, 6, "midpoint", 0.3, "folded"),
        (3, 4, "least_squares", 1.0, "folded"),
        (5, 5, "least_squares", 0.3, "folded"),
    ],
)
def test_follows_the_paper(window, period, fit, step, store):
    """After each form of SGD, with a rate that changes inside of cycles."""

    def rate(count):
        return 0.1 / (1 + count)

    options = {"step": step, "window": window, "period": period, "fit": fit}
    prediction = plp_optax.plp(**options, store=store)
    nesterov = store == "folded"
    tx = plp_optax.plp_sgd(
        rate, 0.9, nesterov, weight_decay=0.01, prediction=prediction
    )
    optimizer = reference.MomentumSGD(rate, 0.9, nesterov, 0.01)
    expected = twin(optimizer, 3 * period + 1, **options)
    actual = run(tx, 3 * period + 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


def test_vector_worked_by_hand():
    """Rate 1, start 0, gradients 1, 2, 4, 1, period 3.

    w = -1, -3, -7; midpoints -2 and -5, slope -3: w_3 becomes -8, then -9.
    """
    tx = optax.chain(optax.sgd(1.0), plp_optax.plp(period=3))
    gradients = [jnp.asarray(g) for g in (1.0, 2.0, 4.0, 1.0)]
    history, _ = run_tree(tx, jnp.zeros(()), gradients)
    assert [float(w) for w in history] == [-1.0, -3.0, -8.0, -9.0]


def test_a_line_searchs_stored_value_is_of_the_point_before_the_jump():
    """As documented, and the way around it; the gradient is that of the jump's end."""

    def loss(w):
        return ((w - 1) ** 2 * jnp.arange(1.0, 4.0)).sum() + (w**4).sum()

    value_and_grad = optax.value_and_grad_from_state(loss)
    search = optax.scale_by_backtracking_linesearch(8, store_grad=True)
    tx = optax.chain(optax.sgd(0.01), search, plp_optax.plp())

    @jax.jit
    def step(w, state, discards):
        value, grad = value_and_grad(w, state=state)
        updates, state = tx.update(
            grad, state, w, value=value, grad=grad, value_fn=loss
        )
        stored = jnp.where(discards, jnp.inf, optax.tree.get(state, "value"))
        state = optax.tree.set(state, value=stored)
        return optax.apply_updates(w, updates), state, abs(value - loss(w))

    errors = {}
    for discards in (False, True):
        w = jnp.array([3.0, -2.0, 1.5])
        state, errors[discards] = tx.init(w), []
        for _ in range(4):
            w, state, error = step(w, state, discards)
            errors[discards].append(float(error))
    assert errors[False][3] > 1  # the point after the third step
    assert max(errors[True]) < 1e-4


def test_injected_step_does_not_change_a_cycle_half_way():
    tx = optax.inject_hyperparams(lambda step: plp_optax.plp(step, period=3))(step=1.0)
    state, emitted = tx.init(jnp.zeros(())), []
    for count, u in enumerate([1.0, 2.0, 4.0, 1.0, 2.0, 4.0]):
        if count == 1:
            state.hyperparams["step"] = jnp.asarray(3.0)
        update, state = tx.update(jnp.asarray(u), state)
        emitted.append(float(update))
    # Step 1 in the first cycle, 4 + 2/2; then step 3, 4 + 3/2 * 2 + 1 * 4.
    assert emitted == [1.0, 2.0, 5.0, 1.0, 2.0, 11.0]


def test_sgd_without_decay_needs_no_parameters():
    tx = plp_optax.plp_sgd(0.1, weight_decay=np.float32(0))
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    assert jnp.all(updates < 0)


@pytest.mark.parametrize("factory", [plp_optax.plp_sgd, plp_optax.plp_adamw])
def test_the_state_is_the_same_for_every_weight_decay(factory):
    params = {"w": jnp.ones(2)}
    states = [
        factory(0.1, weight_decay=decay, mask=mask).init(params)
        for mask in (None, {"w": True})
        for decay in (0, 1e-4)
    ]
    for one, other in (states[:2], states[2:]):
        chex.assert_trees_all_equal_structs(one, other)


def test_chains_take_what_optaxs_optimizers_take():
    """Every argument, by the same name and with the same default."""
    for ours, theirs in (
        (plp_optax.plp_sgd, optax.sgd),
        (plp_optax.plp_adamw, optax.adamw),
    ):
        own = inspect.signature(ours).parameters
        for name, parameter in inspect.signature(theirs).parameters.items():
            assert own[name].default == parameter.default, name
            assert own[name].kind == parameter.kind, name
    options = {"eps_root": 1e-3, "mu_dtype": jnp.bfloat16, "nesterov": True}
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    gradients = [{"a": jnp.asarray([1.0, -2.0]), "b": jnp.ones(2)}] * 2
    mask = {"a": True, "b": False}
    ours = plp_optax.plp_adamw(0.1, **options, weight_decay=0.5, mask=mask)
    theirs = optax.adamw(0.1, **options, weight_decay=0.5, mask=mask)
    chex.assert_trees_all_equal(
        run_tree(ours, params, gradients)[0], run_tree(theirs, params, gradients)[0]
    )
