"""The training program. A reader begins with ``recipe``, and goes on in this order.

- ``recipe``: a training from top to bottom; ``start``: the variables that it starts
  from; ``cascade``: a network trained block by block.
- ``settings``: what can be chosen. ``options`` has the flags, with the classes of
  ``methods``, ``optimizers``, ``schedules`` and ``averages``; ``config`` completes and
  compares them; ``chain`` makes plan, learning rate and optimizer of them.
- ``engine``: what is compiled. ``step`` and its ``state``, the ``feed`` of batches,
  ``parallel`` over devices.
- ``run``: what keeps a run. ``loop`` goes through the epochs; work directory,
  checkpoints, records, screen, pictures and signals.
- ``data``: reads and splits images; ``weights``: reads files of weights; ``layout``:
  the names of a run's files.
- ``trained``, ``merging``, ``comparing``: what is done with runs afterwards, by
  ``python -m training``.

``load`` gives back what a run has trained.
"""

from typing import TYPE_CHECKING, Any

from training.errors import UserError

if TYPE_CHECKING:
    from training.trained import Trained as Trained
    from training.trained import load as load

__all__ = ["Trained", "UserError", "load"]


def __getattr__(name: str) -> Any:
    # These need JAX, which takes a second to import and which the flags do not need.
    if name in ("Trained", "load"):
        from training import trained

        return getattr(trained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
