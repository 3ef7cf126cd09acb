"""From a configuration to a network."""

import pytest

import models
from training.config import resolve
from training.networks import make_network


@pytest.mark.parametrize("name", models.NETWORKS)
def test_networks_with_dropout_are_listed(name):
    has_rate = hasattr(models.create(name), "dropout_rate")
    assert has_rate == (name in models.WITH_DROPOUT)


def test_the_flag_sets_the_dropout_rate():
    for fields, rate in (({}, 0.0), ({"dropout": 0.3}, 0.3)):
        config = resolve({"model": "vit-tiny", **fields})
        assert make_network(config, 10, axis_name=None).dropout_rate == rate
