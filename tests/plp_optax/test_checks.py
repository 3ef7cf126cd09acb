"""Arguments that make no sense: what is raised names them, with the value."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from plp_optax import AmplificationWindow, TrainingStrategy

STAGES = [(2, 0.1, 0, 1.0), (7, 0.1, 1, 1.75)]
# The arguments that a factory needs besides the wrong one.
GOOD = {
    "affine_window": {"coefficients": [0.0, -0.5, 0.5, 1.0], "period": 3},
    "amplify_layers": {"strategy": [AmplificationWindow(0, 8, 4, 2.0)]},
    "effective_rate_multiplier": {"coefficients": [0.5, 0.0, 0.5], "period": 4},
    "merge": {"means": [jnp.zeros(1), jnp.ones(1)]},
    "pace": {"learning_rate": 0.1},
    "plp_adamw": {"learning_rate": 0.1},
    "plp_sgd": {"learning_rate": 0.1},
}


def window(**wrong):
    return {"strategy": [AmplificationWindow(0, 8, 4, 2.0)._replace(**wrong)]}


TABLE = {
    "affine_window": [
        ({"coefficients": [0.5, 0.4]}, r"sum to 1, got \[0.5, 0.4\]"),
        ({"coefficients": [1.0]}, r"at least two .*\[1.0\]"),
        ({"coefficients": [[0.5, 0.5]]}, "at least two"),
        ({"coefficients": "plp"}, "'plp'"),
        ({"coefficients": None}, "None"),
        ({"coefficients": [np.inf, -np.inf, 1.0]}, "finite, .*inf"),
        ({"coefficients": jnp.ones(1)}, r"\(1,\)"),
        ({"coefficients": lambda count: jnp.ones((2, 2))}, r"\(2, 2\)"),
        ({"period": 2}, "at least 3, .* got 2"),
        ({"period": 3.0}, r"got 3\.0"),
        ({"period": True}, "got True"),
        ({"period": jnp.asarray(3)}, "'period' in static_args"),
        ({"period": 2**31}, "int32, got 2147483648"),
        ({"active": True}, "got True"),
        ({"active": lambda n: jnp.ones(2)}, r"scalar, .* of \(2,\)"),
        ({"store": "fold"}, "'folded', 'snapshots', got 'fold'"),
        ({"accumulator_dtype": "int8"}, "got 'int8'"),
        ({"accumulator_dtype": "none"}, "got 'none'"),
    ],
    "lookahead_coefficients": [
        ({"sync_period": 0}, "sync_period .* got 0"),
        ({"slow_step_size": np.nan}, "slow_step_size"),
    ],
    "average_coefficients": [({"window": 0}, "window .* got 0")],
    "effective_rate_multiplier": [
        ({"coefficients": [0.5, 0.6]}, "sum to 1"),
        ({"period": 1}, "at least 2"),
    ],
    "plp": [
        ({"step": "1"}, "step must be a finite number, got '1'"),
        ({"step": jnp.ones(3)}, r"scalar, got an array of \(3,\)"),
        ({"window": 1}, "window must be an int of at least 2, got 1"),
        ({"fit": "cubic"}, "'least_squares', got 'cubic'"),
        ({"fit": ["midpoint"]}, "got .'midpoint'"),
        ({"period": 2}, "period must be at least 3, .* got 2"),
        ({"store": "none"}, "got 'none'"),
        ({"active": 3}, "active must be a function .* got 3"),
    ],
    "plp_coefficients": [({"step": np.nan}, "step .* got nan")],
    "plp_sgd": [
        ({"learning_rate": np.nan}, "learning_rate .* got nan"),
        ({"momentum": "0.9"}, "momentum .* got '0.9'"),
        ({"weight_decay": None}, "weight_decay .* got None"),
    ],
    "plp_adamw": [({"b2": np.inf}, "b2 .* got inf")],
    "anderson": [
        ({"history": 1}, "history must be an int of at least 2, got 1"),
        ({"history": 4, "period": 3}, "period must be at least 4"),
        ({"regularization": 0.0}, "regularization must be above 0, got 0.0"),
        ({"regularization": jnp.ones(2)}, "regularization must be a scalar"),
        ({"min_signal": float("nan")}, "min_signal must be a finite number"),
        ({"revert": 1}, "revert must be True or False, got 1"),
        ({"accumulator_dtype": int}, "accumulator_dtype must be a floating-point"),
    ],
    "ema_nesterov": [
        ({"extrapolation": 1.0}, "extrapolation must be at least 0"),
        ({"decay": -0.1}, "decay must be at least 0 and below 1"),
        ({"accumulator_dtype": int}, "accumulator_dtype must be"),
    ],
    "outer_nesterov": [
        ({"outer_rate": 0.0}, "outer_rate must be above 0"),
        ({"momentum": 1}, "momentum must be at least 0 and below 1"),
        ({"period": 0}, "period must be an int of at least 1"),
    ],
    "tail_average": [
        ({"power": -1.0}, "power must be at least 0"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1"),
        ({"power": 1.0, "decay": 0.5}, "give power or decay"),
        ({"start": -1}, "start must be an int of at least 0"),
        ({"accumulator_dtype": jnp.bfloat16}, "accumulator_dtype must be float32"),
    ],
    "merge": [
        ({"decay": "exponential"}, "decay must be one of 'linear'"),
        ({"decay": lambda x: 1 - x / 2}, "rates from 1 to 0"),
        ({"over": 0.0}, "over must be above 0 and at most 1"),
        ({"counts": [1]}, "counts must be 2 positive numbers"),
        ({"counts": [1, 0]}, "counts must be 2 positive numbers"),
    ],
    "bema": [
        ({"power": -1.0}, "power must be at least 0"),
        ({"lag": 0.5}, "lag must be at least 1"),
        ({"every": 0}, "every must be an int of at least 1"),
        ({"keep_initial": 1}, "keep_initial must be True or False"),
    ],
    "gpa": [
        ({"interpolation": 1.5}, "interpolation must be at least 0 and at most"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1"),
        ({"power": 1.0, "decay": 0.5}, "give power or decay"),
    ],
    "pace": [
        ({"pull": -1.0}, "pull must be at least 0"),
        ({"b2": 1.0}, "b2 must be at least 0 and below"),
    ],
    "ekf": [
        ({"prior_variance": 0.0}, "prior_variance"),
        ({"measurement_noise": -1}, "measurement_noise"),
        ({"process_noise": -1e-9}, "process_noise"),
        ({"process_noise": np.nan}, "process_noise"),
        ({"forgetting": 0}, "forgetting"),
        ({"forgetting": 1.01}, "forgetting"),
        ({"forgetting": "1"}, "forgetting"),
    ],
    "monitor_layers": [
        ({"measure": "g3"}, "measure must be one of"),
        ({"decay": 1.0}, "decay must be .* got 1.0"),
        ({"window": 1}, "window must be .* got 1"),
        ({"decay": 0.5, "window": 3}, "give one of them"),
        ({"layers": "kernel"}, "got 'kernel'"),
    ],
    "noise_adaptive_rates": [
        ({"alpha": 0}, "alpha must be above 0"),
        ({"decay": 0}, "decay must be above 0"),
    ],
    "amplify_layers": [
        ({"strategy": None}, "got None"),
        ({"strategy": []}, r"nothing to do: \[\]"),
        ({"strategy": TrainingStrategy([(3, 0.1)], 5)}, "nothing to do: .*0.1"),
        ({"strategy": STAGES}, "stop .* got 0.1.*steps_per_epoch"),
        ({"strategy": TrainingStrategy(STAGES, 5), "steps_per_epoch": 5}, "has its"),
        ({"strategy": [(0, 8, 4, 2.0), (7, 20, 4, 2.0)]}, "start=7, .* begins before"),
        (window(start=-1), "start .* got -1"),
        (window(stop=4), "stop=4, .* before its analysis epoch does"),
        (window(stop=2**31), r"stop .* int32, got 2147483648"),
        (window(epoch_steps=0), "epoch_steps .* got 0"),
        (window(factor=-0.5), r"factor .* must be at least 0, got -0\.5"),
        ({"select": "scores"}, "selector such as .* got 'scores'"),
        ({"measure": "g3"}, "'g1', 'g1_per_weight', 'g2', got 'g3'"),
        ({"factor": -0.5}, r"factor .* got -0\.5"),
        ({"factor": jnp.ones(3)}, r"factor .* \(3,\)"),
        ({"reselect_every": 0}, "reselect_every .* got 0"),
        ({"reselect_every": jnp.asarray(1)}, "'reselect_every' in static_args"),
        ({"layers": "kernel"}, "got 'kernel'"),
        ({"apply": 0}, "apply .* got 0"),
        ({"accumulator_dtype": "bfloat16"}, "float32 or wider, got 'bfloat16'"),
    ],
    "by_score": [
        ({"threshold": -0.5}, r"threshold .* got -0\.5"),
        ({"threshold": jnp.ones(2)}, r"threshold .* \(2,\)"),
        ({"two_sided": True, "lowest": True}, "give one of them"),
        ({"two_sided": 1}, "two_sided .* got 1"),
        ({"two_sided": jnp.asarray(True)}, "'two_sided' in static_args"),
    ],
    "at_random": [
        ({"ratio": 0.0}, r"ratio .* above 0 and at most 1, got 0\.0"),
        ({"ratio": 1.5}, r"got 1\.5"),
        ({"ratio": jnp.asarray(0.5)}, "ratio must be a number, got a jax"),
        ({"ratio": 0.5, "seed": -1}, "seed .* got -1"),
    ],
}
ROWS = [(name, wrong, text) for name, rows in TABLE.items() for wrong, text in rows]


@pytest.mark.parametrize(("name", "wrong", "message"), ROWS)
def test_bad_arguments_are_named(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        getattr(plp_optax, name)(**(GOOD.get(name, {}) | wrong))


@pytest.mark.parametrize("names", [(), (1,)])
def test_names_of_layers_must_be_some(names):
    with pytest.raises(ValueError, match=rf"got \({'1,' if names else ''}\)"):
        plp_optax.named(*names)


def test_what_inject_hyperparams_made_arrays_of_is_refused():
    factory = optax.inject_hyperparams(plp_optax.plp, static_args=("window", "period"))
    with pytest.raises(ValueError, match="'active' in static_args"):
        factory(active=lambda count: count > 3).init(jnp.zeros(2))
    with pytest.raises(ValueError, match="'accumulator_dtype' in static_args"):
        factory(accumulator_dtype=jnp.float32).init(jnp.zeros(2))
    with pytest.raises(ValueError, match="'window' in static_args"):
        optax.inject_hyperparams(plp_optax.plp)(step=1.0).init(jnp.zeros(2))
