"""What users write, for strict type checkers."""

# pyright: strict, reportMissingTypeStubs=false
import jax
import numpy as np
import optax

import plp_optax

multiplier: float = plp_optax.effective_rate_multiplier(
    plp_optax.plp_coefficients(step=0.5), period=4
)
strategy = plp_optax.TrainingStrategy(
    [(2, 0.1, 0, 1), (6, 0.1, 1, 2.0), plp_optax.Stage(8, 0.01)], steps_per_epoch=10
)
rate: float = strategy.stages[0].learning_rate
array: jax.Array = strategy.learning_rate(3)
window: plp_optax.AmplificationWindow = strategy.windows[0]
weights = np.ones((2, 2), np.float32)
params: optax.Params = {"dense": {"kernel": weights}, "head": {"kernel": weights}}


def selects(selector: plp_optax.Selector) -> optax.GradientTransformation:
    return plp_optax.amplify_layers([window], select=selector, measure="g1")


transformations = [
    plp_optax.amplify_layers([(0, 20, 10, 2.0)], select=plp_optax.by_score(0.5)),
    plp_optax.amplify_layers([(6, 0.1, 1, 2.0)], steps_per_epoch=10, layers="modules"),
    plp_optax.amplify_layers(strategy, select=plp_optax.named("head"), factor=3),
    plp_optax.amplify_layers(strategy, layers=plp_optax.stacked("dense/.*")),
    plp_optax.amplify_layers(strategy, layers=[("head/.*", "h"), (".*", None)]),
    plp_optax.amplify_layers(strategy, layers=lambda path: path or None),
    plp_optax.amplify_layers(strategy, inner=optax.scale_by_adam()),
    selects(plp_optax.at_random(0.5, seed=1)),
    plp_optax.affine_window([0.0, 0.5, 0.5], period=2, store="snapshots"),
    plp_optax.affine_window(plp_optax.average_coefficients(2), period=3),
    plp_optax.lookahead(5),
    plp_optax.anderson(5, period=5, revert=True),
    plp_optax.ema_nesterov(),
    plp_optax.outer_nesterov(),
    plp_optax.bema(every=4, keep_initial=False),
    plp_optax.gpa(0.7, decay=0.99),
    plp_optax.pace(optax.constant_schedule(1e-3), mask={"dense": True}),
    plp_optax.plp_adamw(optax.cosine_decay_schedule(1e-3, 100), mask={"dense": True}),
    plp_optax.ekf(measurement_noise=0.1),
    plp_optax.monitor_layers(optax.adam(1e-3), measure="g2", window=10),
    plp_optax.noise_adaptive_rates(optax.sgd(0.1), alpha=0.5),
    plp_optax.amplify_layers(strategy, select=plp_optax.by_score(lowest=True)),
]
chain = optax.chain(
    plp_optax.amplify_layers(strategy, select=plp_optax.all_layers()),
    plp_optax.plp_sgd(strategy.learning_rate, 0.9, prediction=plp_optax.plp(0.5)),
    plp_optax.tail_average(),
)
state = chain.init(params)
updates, state = chain.update(params, state, params)
averaged: optax.Params = plp_optax.averaged_params(state, params)
fine_tuned = plp_optax.bema()
corrected: optax.Params = plp_optax.bema_params(fine_tuned.init(params), params, params)
names: tuple[str, ...] = plp_optax.layer_names(params)
table: str = plp_optax.layer_table(state, params)
analyses: list[plp_optax.LayerAnalysis] = plp_optax.layer_analyses(state, params)
score: float = analyses[0].score
rows: str = plp_optax.layer_table(analyses)
watched = plp_optax.monitor_layers().init(params)
statistics: list[plp_optax.LayerStatistics] = plp_optax.layer_statistics(
    watched, params
)
ratio: float = statistics[0].snr


def counts(
    affine: plp_optax.AffineWindowState,
    window: plp_optax.AndersonState,
    amplified: plp_optax.AmplifyLayersState,
    average: plp_optax.EmaNesterovState,
    momentum: plp_optax.OuterNesterovState,
    tail: plp_optax.TailAverageState,
    corrected: plp_optax.BemaState,
    primal: plp_optax.GPAState,
    pulled: plp_optax.PaceState,
    kalman: plp_optax.EKFState,
    monitor: plp_optax.MonitorLayersState,
    adaptive: plp_optax.NoiseAdaptiveRatesState,
) -> list[jax.Array]:
    return [
        affine.cycle_step,
        window.gram,
        amplified.scores,
        average.extrapolations,
        momentum.outer_step,
        tail.tail_steps,
        corrected.bema_steps,
        primal.interpolation,
        pulled.average.tail_steps,
        kalman.covariance,
        monitor.squared_norms,
        adaptive.layer_rates,
    ]
