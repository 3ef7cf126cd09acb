"""The training program.

``recipe`` runs a training from top to bottom, and ``cascade`` a network block by block;
``start`` is what they start from.
``merging`` chooses a decay of the learning rate afterwards; ``comparing`` compares
runs.
``settings`` declares what can be chosen, ``data`` reads the images, ``engine`` is what
is compiled, and ``run`` keeps a run: work directory, checkpoints, screen, pictures and
signals.

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
