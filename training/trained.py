"""Using what a run has trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from training import config as config_lib
from training.config import Config
from training.errors import RunError

if TYPE_CHECKING:
    import flax.linen as nn


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      module: The network; maps normalised images [n, height, width, channels] to
        logits [n, classes].
      variables: The best epoch's variables.
      config: The run's configuration.
    """

    module: "nn.Module"
    variables: dict[str, Any]
    config: Config


def load(workdir: str | Path) -> Trained:
    """Loads the best network of a run.

    Args:
      workdir: The run's work directory.

    Returns:
      Module, variables and configuration, for ``module.apply(variables, images,
      train=False)``. Images are normalised as in training: with uint8 images,
      ``training.data.normalize(images, mean, std)``, where ``dataset.json`` in the
      work directory holds ``mean`` and ``std``. (A run in float64 needs
      ``jax.enable_x64``.)

    Raises:
      UserError: If the directory does not hold a run with saved variables.
    """
    # Imported here: the command line reads configurations without JAX.
    from training import checkpoints, networks, records

    path = Path(workdir)
    fields = config_lib.read(path / records.CONFIG, "the run's configuration ")
    config = config_lib.resolve({}, fields | {"workdir": str(path)})
    dataset = records.read_json(path / records.DATASET, needs=["num_classes"])
    try:
        module = networks.make_network(config, dataset["num_classes"], axis_name=None)
    except ValueError as error:
        raise RunError(f"{path / records.DATASET} is damaged ({error})") from error
    return Trained(module, checkpoints.read(path / records.BEST).tree, config)
