"""The average of the parameters that is evaluated next to the last ones."""

from __future__ import annotations

import dataclasses

from training.settings.flags import Part, flag
from training.settings.lazy import Transformation, optax, plp_optax
from training.settings.plan import Plan


@dataclasses.dataclass(frozen=True)
class TailAverage(Part):
    """An average of the parameters, which does not change the training."""

    prefix = "average"
    power: float | None = flag(
        16.0,
        "Exponent of the power average. Its mean age is 1 / (exponent + 2) of the run "
        "so far.",
        only=("average", ("power",)),
        low=0,
    )
    decay: float | None = flag(
        0.999,
        "Decay of the exponential moving average, which is bias-corrected.",
        only=("average", ("ema",)),
        low=0,
        below=1,
    )
    start: float = flag(
        0.0, "Part of the run after which the average begins.", low=0, below=1
    )

    def first_step(self, plan: Plan) -> int:
        """The number of optimizer steps before the average begins."""
        return round(self.start * plan.total_steps)

    def steps(self, state: optax.OptState, plan: Plan) -> int:
        """The number of steps in the average so far, 0 before it begins."""
        return max(int(optax.tree.get(state, "tail_steps")) - self.first_step(plan), 0)

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        """Adds the average to a complete optimizer, whose updates it follows."""
        is_mean = self.power is None and self.decay is None
        average = plp_optax.tail_average(
            0.0 if is_mean else self.power,
            decay=self.decay,
            start=self.first_step(plan),
        )
        return optax.chain(base, average)


AVERAGES: dict[str, type[TailAverage] | tuple[()]] = {
    **dict.fromkeys(("power", "ema", "mean"), TailAverage),
    "none": (),
}
