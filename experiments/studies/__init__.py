"""The studies, a module each: what it compares, and at which scales."""

import importlib
from types import ModuleType

from training.errors import ConfigError

NAMES = ("plp", "amplification", "together", "mechanism", "ablation")


def module(name: str) -> ModuleType:
    """Imports a study's module.

    It has ``STUDY``, an ``experiments.study.Study``, and may have
    ``watcher(program, config)``, which returns a ``train.Watcher`` with a dict
    ``measures`` for ``experiments.records.Record``, or None for a run that needs none.

    Args:
      name: One of ``NAMES``.

    Raises:
      ConfigError: If there is no such study.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no study {name!r}: choose {' or '.join(NAMES)}")
    return importlib.import_module(f"experiments.studies.{name}")
