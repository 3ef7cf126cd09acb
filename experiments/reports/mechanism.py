"""The report of the mechanism: what theory predicts, and what was measured."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments import stability, stability_chart, tables
from experiments.page import Block, Bullets, Picture, Section, Table
from experiments.reports import curvature, shared
from experiments.reports.comparisons import Compared
from experiments.reports.curvature import PLP, Seen
from experiments.reports.runs import NOT_RUN, Runs
from experiments.statistics import compare
from experiments.studies.mechanism import (
    FULL_BATCH_MODELS,
    METHODS,
    PERIOD,
    REGIMES,
    Regime,
)

_KINDS = (
    ("no momentum", 0.0, False),
    ("heavy ball 0.9", 0.9, False),
    ("Nesterov 0.9", 0.9, True),
)
_VERDICTS = {1: "As predicted.", 0: "Cannot be told.", -1: "Not as predicted."}
_CRITERIA = (
    "On the full batch a regime is called as predicted: at a low rate if on every seed "
    "PLP ends less than half as far from its matched rate as from SGD (not as "
    "predicted, if on none); at a high rate if the 95 % interval of the ratio of "
    "curvatures lies on the predicted side of 1 (not, if on the other), whatever its "
    "size."
)
_CAVEAT = (
    "Theory speaks of the full batch, a constant rate, and a loss whose curvature does "
    "not depend on the size of the batch or of the weights: that is the network plain. "
    "In the others batch normalisation ties curvature to the norm of the weights (the "
    "loss does not change when they are scaled, and its Hessian shrinks with their "
    "square), and noise keeps curvature below the limits of the full batch: there the "
    "limits are a guide and no prediction."
)


# What was measured in a regime, by method and seed.
_Found = Mapping[str, Mapping[int, Seen]]


def sections(runs: Runs, found: Sequence[Compared]) -> list[Section]:
    """What came out, where cycles are stable, what training meets, and distances."""
    along = [curvature.along(runs, model) for model in runs.models]
    distances = [curvature.distances(runs, model) for model in runs.models]
    return [
        Section("Predictions and what came of them", predictions(runs)),
        Section(
            "Where a cycle is stable",
            [_chart(), _limits()],
        ),
        Section("Learning rate x curvature along training", [*along, _measured(runs)]),
        Section("Distance between the paths", distances),
        *shared.sections(runs, found, "Loss and accuracy"),
    ]


def _chart() -> Picture:
    return Picture(
        "stability",
        stability_chart.draw(),
        "By how much an error grows in a step of PLP, over momentum and PLP's learning "
        "rate x curvature (above), with the limits of PLP, of SGD, and of SGD at the "
        "matched rate; and the first limits of PLP with other settings (below).",
    )


# -- In words --------------------------------------------------------------------------


def predictions(runs: Runs) -> list[Block]:
    """What theory predicts of each regime, and what was measured."""
    blocks: list[Block] = [_prediction(), _bands(), _CRITERIA, _CAVEAT]
    for model in runs.models:
        kind = "full batch" if model in FULL_BATCH_MODELS else "small batches"
        told = [_told(runs, model, regime) for regime in REGIMES]
        blocks.append(Bullets(f"{model}, {kind}", told))
    return blocks


def _prediction() -> str:
    told = []
    for kind, momentum, nesterov in _KINDS:
        ratio = _limit_ratio(momentum, nesterov=nesterov)
        told.append(f"{ratio:.2f} with {kind}")
    return (
        f"Predicted: PLP of period {PERIOD} takes the path of its matched rate while "
        f"learning rate x curvature is small. Where training drives curvature up to "
        f"what the optimizer bears, PLP and its matched rate end at curvatures whose "
        f"ratio is that of their limits: {tables.join(told)}."
    )


def _bands() -> str:
    """What a first limit leaves out."""
    momentum = next(m for _, m, nesterov in _KINDS if m and not nesterov)
    told = []
    for low, high in stability.unstable_bands(curvature.PLP, momentum):
        top = min(high, 2 * low)
        inside = np.linspace(low, top, 201)
        most = stability.growth(curvature.PLP, inside, momentum).max() - 1
        told.append(f"from {low:.2f} to {top:.2f} by {most:.1%} a step at most")
    return (
        f"A limit is no wall: with heavy ball {momentum} an error grows "
        f"{tables.join(told)}, so that training may pass through."
    )


def _told(runs: Runs, model: str, regime: Regime) -> str:
    found = curvature.look(runs, model, regime)
    if missing := [METHODS[method] for method in found if not found[method]]:
        return f"{regime.label}: {tables.join(missing)} {NOT_RUN}."
    sentences = [f"{regime.label}: {_ends(found, regime)}"]
    verdicts = []
    for tell in (_ratio, _way):
        sentence, verdict = tell(found, regime)
        sentences.append(sentence)
        verdicts.append(verdict)
    if model in FULL_BATCH_MODELS:
        verdict = verdicts[1] if regime.name.endswith("low") else verdicts[0]
        sentences.append(_VERDICTS[verdict])
    return " ".join(sentences)


def _ends(found: _Found, regime: Regime) -> str:
    """Where learning rate x curvature ends, beside the limits."""
    told = []
    for method, label in METHODS.items():
        ends = _end_products(found[method])
        diverged = len(found[method]) - len(ends)
        at = f"at {tables.spread(ends, 2)}" if ends.size else "nowhere"
        lost = f", {diverged} of {len(found[method])} runs diverged" if diverged else ""
        limit = curvature.limit(method, regime)
        told.append(f"{at} with {label} (limit {limit:.2f}{lost})")
    return f"learning rate x curvature ends {tables.join(told)}."


def _end_products(runs: Mapping[int, Seen]) -> np.ndarray:
    return np.array([s.end(s.products) for s in runs.values() if not s.record.diverged])


def _ratio(found: _Found, regime: Regime) -> tuple[str, int]:
    """The curvature that PLP ends at, of its matched rate's; 1 if as predicted."""
    pairs = curvature.together(found["plp"], found["matched"]).values()
    ends = np.array([[s.end(s.curvature) for s in pair] for pair in pairs])
    if not ends.size or (ends <= 0).any():
        return "The curvatures at the end have no ratio.", 0
    ratio = compare(*np.log(ends).T)
    told = (
        f"PLP ends at {np.exp(ratio.mean):.2f} times the curvature of its matched rate"
    )
    if ratio.interval is None:
        return f"{told}, on one seed, which tells nothing.", 0
    low, high = np.exp(ratio.interval)
    limits = _limit_ratio(regime.momentum, nesterov=regime.nesterov)
    direction = (1 if limits > 1 else -1) * ratio.verdict
    where = "within" if low <= limits <= high else "outside"
    told = f"{told} [{low:.2f}, {high:.2f}]; the ratio of limits, {limits:.2f}, lies"
    return f"{told} {where}.", direction


def _way(found: _Found, regime: Regime) -> tuple[str, int]:
    """Whose path PLP takes; 1 if it is the matched rate's."""
    ways = {}
    for method in ("matched", "sgd"):
        pairs = curvature.together(found["plp"], found[method])
        ways[method] = {s: curvature.apart(*pair)[-1] for s, pair in pairs.items()}
    seeds = ways["matched"].keys() & ways["sgd"].keys()
    if not seeds:
        return "Paths cannot be compared.", 0
    near, far = (np.array([ways[m][s] for s in seeds]) for m in ("matched", "sgd"))
    is_near = near < far / 2
    told = (
        f"Its parameters end {100 * near.mean():.1f} % of their way from those of the "
        f"matched rate and {100 * far.mean():.1f} % from those of SGD; less than half "
        f"as far on {is_near.sum()} of {len(seeds)} seeds."
    )
    return told, int(is_near.all()) - int(not is_near.any())


def _limit_ratio(momentum: float, *, nesterov: bool) -> float:
    """The curvature that PLP bears, of what its matched rate bears."""
    ours = stability.stability_limit(PLP, momentum, nesterov=nesterov)
    return ours / stability.matched_limit(PLP, momentum, nesterov=nesterov)


# -- In numbers ------------------------------------------------------------------------


def _limits() -> Table:
    cycles = {
        **{f"period {n}": stability.plp_cycle(period=n) for n in (3, 4, 5, 8)},
        **{f"step {s}": stability.plp_cycle(s) for s in (0.25, 0.5, 2.0, 4.0)},
        **{
            f"window {k}, period 5": stability.plp_cycle(window=k, period=5)
            for k in (2, 4, 5)
        },
    }
    rows = []
    for name, cycle in cycles.items():
        cells = [f"{cycle.drift:.4g}"]
        for _, momentum, nesterov in _KINDS:
            ours = stability.stability_limit(cycle, momentum, nesterov=nesterov)
            theirs = stability.matched_limit(cycle, momentum, nesterov=nesterov)
            cells.append(f"{ours:.3f} / {theirs:.3f}")
        rows.append([f"PLP, {name}", *cells])
    return Table(
        "First unstable learning rate x curvature: PLP / its matched rate",
        ["cycle", "matched rate", *(kind for kind, _, _ in _KINDS)],
        rows,
        note="Both over the learning rate of PLP. All else is the default: step 1, "
        "window 3, period 4.",
    )


def _measured(runs: Runs) -> Table:
    rows = []
    for model in runs.models:
        for regime in REGIMES:
            for method, by_seed in curvature.look(runs, model, regime).items():
                arm = f"{method}-{regime.name}"
                rate = {
                    f"{s.record.config['learning_rate']:g}" for s in by_seed.values()
                }
                products = [
                    s.products.max() for s in by_seed.values() if not s.record.diverged
                ]
                rows.append(
                    [
                        *(model, regime.label, METHODS[method]),
                        ", ".join(rate) or tables.NONE,
                        runs.absence(model, arm) or runs.count(model, arm),
                        tables.spread(_end_products(by_seed), 3),
                        tables.spread(np.array(products), 3),
                        f"{curvature.limit(method, regime):.3f}",
                    ]
                )
    return Table(
        "Learning rate x top eigenvalue",
        [
            *("network", "regime", "arm", "rate", "runs"),
            *("at the end", "at its highest", "limit"),
        ],
        rows,
        note="Mean ± standard deviation over the finished runs; the end is the mean of "
        "the last quarter of the measurements.",
        left=3,
    )
