"""The rooms of the training program.

``config`` reads what was asked for, ``data`` loads images, ``optimizers`` and ``step``
make what is compiled, ``parallel`` maps it over the devices, ``loop`` runs it,
``records``, ``checkpoints``, ``curves`` and ``display`` keep and show what came out.
"""

from training.errors import UserError
from training.trained import Trained, load

__all__ = ["Trained", "UserError", "load"]
