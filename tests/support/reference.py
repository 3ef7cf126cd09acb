"""Slow, literal NumPy float64 twins of what the library computes.

They keep everything, every parameter of a cycle or every gradient of an epoch, and
follow the papers' equations as printed (misprints mended), so that they share no
formula with the library's folded forms.
"""

import itertools
from collections.abc import Callable

import numpy as np

Gradient = Callable[[np.ndarray, int], np.ndarray]


def predict_midpoint(w: list[np.ndarray], step: float) -> np.ndarray:
    """Ying et al. 2023, the line through midpoints; ``w`` is [w_0, ..., w_window]."""
    w = w[1:]
    midpoints = [(a + b) / 2 for a, b in itertools.pairwise(w)]
    if len(midpoints) == 1:
        slope = w[1] - w[0]
    else:
        slope = (midpoints[-1] - midpoints[0]) / (len(midpoints) - 1)
    return midpoints[-1] + step * slope


def predict_least_squares(w: list[np.ndarray], step: float) -> np.ndarray:
    """The regression line through w_1, ..., w_k at the time k - 1/2 + step."""
    k = len(w) - 1
    design = np.stack([np.ones(k), np.arange(1, k + 1)], axis=1)
    flat = np.stack([np.ravel(x) for x in w[1:]])
    (intercept, slope), *_ = np.linalg.lstsq(design, flat)
    return (intercept + slope * (k - 0.5 + step)).reshape(np.shape(w[0]))


PREDICT = {"midpoint": predict_midpoint, "least_squares": predict_least_squares}


def combine(w: list[np.ndarray], coefficients: list[float]) -> np.ndarray:
    """The affine combination ``sum_i c_i w_i``."""
    return sum(c * x for c, x in zip(coefficients, w, strict=True))


class MomentumSGD:
    """SGD as PyTorch documents it: L2 decay, then momentum, then the rate."""

    def __init__(self, learning_rate, momentum=0.0, nesterov=False, weight_decay=0.0):
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.buffer = 0.0

    def step(self, w: np.ndarray, gradient: np.ndarray, count: int) -> np.ndarray:
        g = gradient + self.weight_decay * w
        self.buffer = self.momentum * self.buffer + g
        direction = g + self.momentum * self.buffer if self.nesterov else self.buffer
        rate = self.learning_rate
        return w - (rate(count) if callable(rate) else rate) * direction


def train(
    w: np.ndarray,
    gradient: Gradient,
    optimizer: MomentumSGD,
    steps: int,
    *,
    jump: Callable[[list[np.ndarray], int], np.ndarray] | None,
    k: int,
    period: int,
) -> list[np.ndarray]:
    """Parameters after each of ``steps`` steps.

    ``jump(w_0_to_k, start)`` gives the point where the k-th step of a cycle ends;
    ``start`` is the number of steps taken before the cycle.
    """
    history, cycle, start = [], [w], 0
    for count in range(steps):
        w = optimizer.step(w, gradient(w, count), count)
        cycle.append(w)
        if jump is not None and len(cycle) == k + 1:
            w = jump(cycle, start)
        if count + 1 - start == period:
            cycle, start = [w], count + 1
        history.append(w)
    return history


def cycle_map(
    curvature: float,
    *,
    coefficients: list[float],
    period: int,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> np.ndarray:
    """One cycle's linear map of (error, momentum buffer) on a quadratic.

    ``curvature`` is learning rate times curvature; the matrix is found column by
    column, by training from the two unit vectors.
    """
    columns = []
    for w0, buffer in np.eye(2):
        optimizer = MomentumSGD(1.0, momentum, nesterov)
        optimizer.buffer = buffer
        history = train(
            np.array(w0),
            lambda w, _: curvature * w,
            optimizer,
            period,
            jump=lambda w, _: combine(w, coefficients),
            k=len(coefficients) - 1,
            period=period,
        )
        columns.append([history[-1], optimizer.buffer])
    return np.array(columns).T


def spectral_radius(matrix: np.ndarray) -> float:
    """The largest modulus of an eigenvalue."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())


# -- layer-wise gradient amplification -------------------------------------------------

# A layer's gradients are a matrix, ``g[i][j]`` of iteration i and weight j.


def measure_g1(g: np.ndarray) -> float:
    """abs(sum_i sum_j g_ij) / sum_i sum_j abs(g_ij)."""
    signed = absolute = 0.0
    for iteration in g:
        for value in iteration:
            signed += value
            absolute += abs(value)
    return abs(signed) / absolute if absolute else 0.0


def measure_g1_per_weight(g: np.ndarray) -> float:
    """sum_j abs(sum_i g_ij) / sum_j sum_i abs(g_ij)."""
    signed = absolute = 0.0
    for weight in np.transpose(g):
        signed += abs(sum(weight))
        absolute += sum(abs(value) for value in weight)
    return signed / absolute if absolute else 0.0


def measure_g2(g: np.ndarray) -> float:
    """mean_j ( abs(sum_i g_ij) / sum_i abs(g_ij) ), over weights with a gradient."""
    ratios = []
    for weight in np.transpose(g):
        absolute = sum(abs(value) for value in weight)
        if absolute:
            ratios.append(abs(sum(weight)) / absolute)
    return sum(ratios) / len(ratios) if ratios else 0.0


MEASURE = {
    "g1": measure_g1,
    "g1_per_weight": measure_g1_per_weight,
    "g2": measure_g2,
}


def standardize(scores: list[float]) -> list[float]:
    """(G - mean) / std over the layers, with the population's std; equal scores: 0."""
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / len(scores)
    if max(scores) - min(scores) <= 1e-12:
        return [0.0 for _ in scores]
    return [(score - mean) / variance**0.5 for score in scores]


def select_layers(
    z_scores: list[float], threshold: float, two_sided: bool
) -> list[bool]:
    """Case 1: z > threshold. Case 2: abs(z) > threshold."""
    if two_sided:
        return [z > threshold or z < -threshold for z in z_scores]
    return [z > threshold for z in z_scores]


def train_with_strategy(
    layers: list[list[np.ndarray]],
    gradient: Callable[[list[list[np.ndarray]], int], list[list[np.ndarray]]],
    strategy: list[tuple[int, float, int, float]],
    *,
    steps_per_epoch: int,
    measure: str,
    choose: Callable[[list[float]], list[bool]],
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    reselect_every: int | None = None,
    factor: float | Callable[[int], float] | None = None,
) -> tuple[list[list[list[np.ndarray]]], list[tuple[list[float], list[bool]]]]:
    """Amplified training, epoch by epoch, along (end epoch, rate, amplify?, factor).

    A layer is a list of arrays; ``choose`` selects layers by their standardised
    scores. Returns the layers after each step, and (scores, selected) of each analysis.
    """
    buffers = [[np.zeros_like(w) for w in layer] for layer in layers]
    history, analyses = [], []
    chosen = [False for _ in layers]
    count = start = 0
    for end, rate, amplify, stage_factor in strategy:
        for epoch in range(start + 1, end + 1):
            amplified_epoch = epoch - start - 1  # 0 is the analysis epoch
            analyzed = amplify and amplified_epoch == 0
            if amplify and reselect_every and amplified_epoch > 0 and epoch < end:
                analyzed = amplified_epoch % reselect_every == 0
            seen: list[list[np.ndarray]] = [[] for _ in layers]
            for _ in range(steps_per_epoch):
                raw = gradient(layers, count)
                if factor is None:
                    f = stage_factor
                else:
                    f = factor(count) if callable(factor) else factor
                layers = [list(layer) for layer in layers]
                for index, layer in enumerate(layers):
                    flat = np.concatenate([np.ravel(g) for g in raw[index]])
                    seen[index].append(flat)
                    on = amplify and amplified_epoch > 0 and chosen[index]
                    for part, g in enumerate(raw[index]):
                        g = f * g if on else g
                        g = g + weight_decay * layer[part]
                        buffer = momentum * buffers[index][part] + g
                        buffers[index][part] = buffer
                        layer[part] = layer[part] - rate * buffer
                history.append(layers)
                count += 1
            if analyzed:
                scores = [MEASURE[measure](np.array(g)) for g in seen]
                chosen = choose(standardize(scores))
                analyses.append((scores, chosen))
        start = end
    return history, analyses


# -- statistics of layers --------------------------------------------------------------


def layer_statistics(
    g: list[np.ndarray],
    u: list[np.ndarray],
    w: list[np.ndarray],
    weights: list[float],
    measure: str,
) -> dict[str, float]:
    """A layer's statistics, from all of its gradients, updates and parameters.

    ``weights`` are those of the steps. The variance is half the mean square distance of
    two different gradients.
    """
    c = np.array(weights) / sum(weights)
    n = 1 / (c**2).sum()
    mean = sum(ci * gi for ci, gi in zip(c, g, strict=True))
    pairs = list(itertools.permutations(range(len(c)), 2))
    total = sum(c[i] * c[j] for i, j in pairs)
    distances = sum(c[i] * c[j] * ((g[i] - g[j]) ** 2).sum() for i, j in pairs)
    noise = distances / total / 2 if pairs else 0.0
    signal = max((mean**2).sum() - noise / n, 0.0) if pairs else 0.0

    def rms_norm(x: list[np.ndarray]) -> float:
        return sum(ci * (xi**2).sum() for ci, xi in zip(c, x, strict=True)) ** 0.5

    # The measures are sums, in which a gradient of weight c is one that is c as long.
    scaled = np.array([ci * gi for ci, gi in zip(c, g, strict=True)])
    return {
        "samples": n,
        "gradient_norm": rms_norm(g),
        "update_norm": rms_norm(u),
        "parameter_norm": rms_norm(w),
        "signal": signal,
        "noise": noise,
        "agreement": MEASURE[measure](scaled),
    }


def train_noise_adaptive(
    layers: list[np.ndarray],
    gradient: Callable[[list[np.ndarray], int], list[np.ndarray]],
    optimizers: list[MomentumSGD],
    steps: int,
    *,
    alpha: float,
    decay: float,
) -> tuple[list[list[np.ndarray]], list[list[float]]]:
    """Layers and their rates after each step: LANTON's rate over its mean.

    A layer's noise is in units of its mean over the layers.
    """
    seen: list[list[np.ndarray]] = [[] for _ in layers]
    history, all_rates = [], []
    for count in range(steps):
        gradients = gradient(layers, count)
        noise = []
        for own, g in zip(seen, gradients, strict=True):
            own.append(g)
            weights = [decay ** (count - i) for i in range(count + 1)]
            noise.append(layer_statistics(own, own, own, weights, "g1")["noise"])
        unit = sum(noise) / len(noise) or 1.0
        alphas = [alpha / (alpha**2 + h / unit) ** 0.5 for h in noise]
        mean = sum(a**0.5 for a in alphas) / len(alphas)
        rates = [a**0.5 / mean for a in alphas]
        layers = [
            w + rate * (optimizer.step(w, g, count) - w)
            for w, g, rate, optimizer in zip(
                layers, gradients, rates, optimizers, strict=True
            )
        ]
        history.append(layers)
        all_rates.append(rates)
    return history, all_rates
