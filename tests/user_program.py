"""What users write, for a strict type checker: see test_types.py."""

import jax
import jax.numpy as jnp
import optax

import plp_optax

multiplier: float = plp_optax.effective_rate_multiplier(
    plp_optax.plp_coefficients(step=0.5), period=4
)
strategy = plp_optax.TrainingStrategy(
    [(2, 0.1, 0, 1), (6, 0.1, 1, 2.0), plp_optax.Stage(8, 0.01)], steps_per_epoch=10
)
rate: float = strategy.stages[0].learning_rate
params = {"dense": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones(2)}}
transformations = [
    plp_optax.amplify_layers([(0, 20, 10, 2.0)], select=plp_optax.by_score(0.5)),
    plp_optax.amplify_layers([(6, 0.1, 1, 2.0)], steps_per_epoch=10, layers="modules"),
    plp_optax.amplify_layers(strategy, select=plp_optax.named("head"), factor=3),
    plp_optax.amplify_layers(strategy, layers=plp_optax.stacked("dense/.*")),
    plp_optax.amplify_layers(strategy, layers=[("head/.*", "h"), (".*", None)]),
    plp_optax.amplify_layers(strategy, layers=lambda path: path or None),
    plp_optax.amplify_layers(strategy, inner=optax.scale_by_adam()),
]
chain = optax.chain(
    plp_optax.amplify_layers(strategy, select=plp_optax.all_layers()),
    plp_optax.plp_sgd(strategy.learning_rate, 0.9, prediction=plp_optax.plp(0.5)),
)
state = chain.init(params)
updates, state = chain.update(params, state, params)
table: str = plp_optax.amplification_table(state, params)
score: float = plp_optax.layer_analyses(chain.init(params), params)[0].score
array: jax.Array = strategy.learning_rate(3)
window = plp_optax.affine_window([0.0, 0.5, 0.5], period=2, store="parameters")
injected = optax.inject_hyperparams(plp_optax.plp, plp_optax.static_args(plp_optax.plp))
