"""The training loss as a function of the parameters alone, for what studies measure."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import optax


@dataclasses.dataclass(frozen=True)
class TrainingLoss:
    """The training loss of a batch as a function of the parameters.

    Batch normalisation takes its statistics from this batch, so that they are part of
    what is differentiated. Dropout always uses the same random numbers.

    Attributes:
      module: The network. Losses of equal networks are equal, and compile once.
    """

    module: nn.Module

    def __call__(
        self, images: Any, labels: Any, params: Any, batch_stats: Any = None
    ) -> jax.Array:
        """The mean cross-entropy, in nats; frozen blocks need running statistics."""
        logits, _ = self.module.apply(
            {"params": params, "batch_stats": batch_stats or {}},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()
