"""The numbers of steps of a run, which schedules and methods are built from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import plp_optax


class Plan(NamedTuple):
    """How long a run is, and by which strategy and seed; made once for a run.

    Attributes:
      steps_per_epoch: Optimizer steps in an epoch.
      total_steps: Optimizer steps in all epochs, which schedules span.
      last_step: The step after which the run stops: ``--max-steps``, if that is less.
      seed: The seed.
      strategy: Learning rate and amplification by epoch, if there is a strategy.
    """

    steps_per_epoch: int
    total_steps: int
    last_step: int
    seed: int
    strategy: plp_optax.TrainingStrategy | None
