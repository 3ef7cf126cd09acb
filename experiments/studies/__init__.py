"""The studies, a module each: what it compares, and at which scales.

To add a study, write a module with a ``STUDY`` and add its name here.
"""

import importlib

from experiments.study import Study
from training.errors import ConfigError

NAMES = (
    "head_to_head",
    "plp",
    "amplification",
    "together",
    "mechanism",
    "ablation",
    "sequential",
    "predictors",
    "small_batches",
    "image_batches",
    "readouts",
    "acceleration",
    "cascade",
    "vanishing",
)


def load(name: str) -> Study:
    """Imports a study.

    Args:
      name: One of ``NAMES``.

    Raises:
      ConfigError: If there is no such study.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no study {name!r}: choose {' or '.join(NAMES)}")
    study: Study = importlib.import_module(f"experiments.studies.{name}").STUDY
    return study
