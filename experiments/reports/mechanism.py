"""The report of the mechanism: what theory predicts, and what was measured."""

from collections.abc import Sequence

import numpy as np

from experiments import stability, stability_chart, tables
from experiments.comparisons import Compared
from experiments.figures import Picture
from experiments.reports import curvature
from experiments.reports.curvature import PLP, ByMethod
from experiments.runs import Runs
from experiments.statistics import compare
from experiments.studies.mechanism import PERIOD, REGIMES

_KINDS = (
    ("no momentum", 0.0, False),
    ("heavy ball 0.9", 0.9, False),
    ("Nesterov 0.9", 0.9, True),
)
_THEORY = (
    "The theory is that of a quadratic: the full batch, a constant learning rate, and "
    "a loss whose curvature does not depend on the size of the batch or of the "
    "weights. The network *plain* is trained so. In the other networks batch "
    "normalisation ties the curvature to the norm of the weights, and noise keeps it "
    "below the limits of the full batch; there the limits are a guide and not a "
    "prediction. A limit is not a wall either: above it an error grows by a few "
    "percent a step, and training can pass through."
)


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """Predictions and measurements, limits of stability, curvature, and distances."""
    del found
    return [
        "## Predictions and measurements",
        f"Theory predicts that PLP of period {PERIOD} follows the path of its matched "
        f"rate while learning rate x curvature is small. Where training raises the "
        f"curvature to the limit of the optimizer, PLP and its matched rate should end "
        f"at curvatures whose ratio is that of their limits.",
        _THEORY,
        _predictions(runs),
        *(curvature.products(runs, model) for model in runs.models),
        *(curvature.distances(runs, model) for model in runs.models),
        "## Where a cycle is stable",
        Picture(
            "stability",
            stability_chart.draw(),
            "Above: how much an error grows in a step of PLP, over momentum and PLP's "
            "learning rate x curvature, with the limits of PLP, of SGD, and of SGD at "
            "the matched rate. Below: the first unstable value of PLP with other "
            "settings.",
        ),
        _limits(),
    ]


def _predictions(runs: Runs) -> str:
    rows = []
    for model in runs.models:
        for regime in REGIMES:
            found = curvature.measured(runs, model, regime)
            if seeds := len(curvature.pairs(found, "matched")):
                ratio = _limit_ratio(regime.momentum, nesterov=regime.nesterov)
                rows.append(
                    [
                        *(model, regime.label, f"{seeds}", f"{ratio:.2f}"),
                        *_curvature_ratio(found),
                        *(_distance(found, method) for method in ("matched", "sgd")),
                    ]
                )
    return tables.markdown(
        "PLP and its matched rate",
        [
            *("network", "regime", "seeds", "ratio of limits (theory)"),
            *("ratio of curvatures at the end", "95 % interval"),
            *("distance from the matched rate (%)", "distance from SGD (%)"),
        ],
        rows,
        note="Ratios are PLP's over the matched rate's: the geometric mean over the "
        "seeds, and Student's interval of its logarithm. The end is the last quarter "
        "of the measurements. Distances are between the final parameters, in percent "
        "of the distance that PLP moved: mean ± standard deviation.",
        left=2,
    )


def _curvature_ratio(found: ByMethod) -> tuple[str, str]:
    """The curvature that PLP ends at over its matched rate's, and its interval."""
    both = curvature.pairs(found, "matched").values()
    ends = np.array([[m.end(m.curvature) for m in pair] for pair in both])
    if (ends <= 0).any():
        return tables.NONE, tables.NONE
    ratio = compare(*np.log(ends).T)
    if ratio.interval is None:
        return f"{np.exp(ratio.mean):.2f}", tables.NONE
    low, high = np.exp(ratio.interval)
    return f"{np.exp(ratio.mean):.2f}", f"[{low:.2f}, {high:.2f}]"


def _distance(found: ByMethod, method: str) -> str:
    both = curvature.pairs(found, method).values()
    ends = [100 * curvature.distance(*pair)[-1] for pair in both]
    return tables.spread(np.array(ends), 1)


def _limit_ratio(momentum: float, *, nesterov: bool) -> float:
    """PLP's limit of curvature over its matched rate's."""
    ours = stability.stability_limit(PLP, momentum, nesterov=nesterov)
    return ours / stability.matched_limit(PLP, momentum, nesterov=nesterov)


def _limits() -> str:
    cycles = {
        **{f"period {n}": stability.plp_cycle(period=n) for n in (3, 4, 5, 8)},
        **{f"step {s:g}": stability.plp_cycle(s) for s in (0.25, 0.5, 2.0, 4.0)},
        **{
            f"window {k}, period 5": stability.plp_cycle(window=k, period=5)
            for k in (2, 4, 5)
        },
    }
    rows = []
    for name, cycle in cycles.items():
        cells = [f"{cycle.rate_multiplier:.4g}"]
        for _, momentum, nesterov in _KINDS:
            ours = stability.stability_limit(cycle, momentum, nesterov=nesterov)
            theirs = stability.matched_limit(cycle, momentum, nesterov=nesterov)
            cells.append(f"{ours:.3f} / {theirs:.3f}")
        rows.append([f"PLP, {name}", *cells])
    return tables.markdown(
        "First unstable learning rate x curvature: PLP / its matched rate",
        ["cycle", "matched rate", *(kind for kind, _, _ in _KINDS)],
        rows,
        note="Both over PLP's learning rate. The other settings have their defaults: "
        "step 1, window 3, period 4.",
    )
