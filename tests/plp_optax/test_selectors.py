"""Selectors: draws, thresholds and names."""

import math

import numpy as np
import pytest

import plp_optax
from plp_optax import (
    AmplificationWindow,
    at_random,
    by_score,
    named,
)
from tests.support.amplification import feed, kernels


def random_selections(layers=12, selections=6, **kwargs):
    windows = [AmplificationWindow(0, selections + 1, 1, factor=2.0)]
    tx = plp_optax.amplify_layers(
        windows, select=at_random(**kwargs), reselect_every=1, measure="g1"
    )
    gradients = [kernels(np.ones((layers, 2), np.float32))] * selections
    return [tuple(s.amplified.tolist()) for s in feed(tx, gradients)[1][1:]]


@pytest.mark.parametrize(("ratio", "drawn"), [(0.01, 1), (0.7, 8), (1.0, 12)])
def test_random_draws_the_ratio_of_layers_at_least_one(ratio, drawn):
    assert {sum(s) for s in random_selections(ratio=ratio)} == {drawn}


def test_random_draws_anew_and_depends_on_the_seed():
    draws = random_selections(ratio=0.5, selections=12)
    assert len(set(draws)) > 8  # of 924 possible ones
    assert np.mean(draws, axis=0).max() < 1  # no layer is always drawn
    assert draws == random_selections(ratio=0.5, selections=12)
    assert draws != random_selections(ratio=0.5, selections=12, seed=1)
    random_selections(ratio=0.5, selections=1, seed=2**31 - 1)


def test_a_threshold_that_cannot_be_exceeded_is_refused():
    windows = [AmplificationWindow(0, 2, 1, factor=2.0)]
    for layers in (1, 2, 5):
        params = kernels(np.zeros((layers, 2)))
        bound = math.sqrt(layers - 1)
        message = rf"threshold {bound} cannot .* {layers} layers"

        def tx(threshold):
            return plp_optax.amplify_layers(windows, select=by_score(threshold))

        with pytest.raises(ValueError, match=message):
            tx(bound).init(params)
        if layers > 1:
            tx(bound - 1e-3).init(params)


def test_layers_to_select_must_exist():
    windows = [AmplificationWindow(0, 8, 4, 2.0)]
    tx = plp_optax.amplify_layers(windows, select=named("a", "z", "y"))
    with pytest.raises(ValueError, match="no layers named y, z; the layers are a, b"):
        tx.init(kernels(np.zeros((2, 3))))
