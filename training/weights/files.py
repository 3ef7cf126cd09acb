"""Files of initial variables: of weights by name, and of a run that is started from.

Only arrays and bytes are here, so that flags are checked without JAX.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.errors import ConfigError
from training.layout import File

FORMATS = (".npz", ".safetensors")


def start_digest(start: str) -> str:
    """The SHA-256 digest of the variables that ``--start-from`` names.

    Raises:
      ConfigError: If they are absent or damaged.
    """
    path = start_file(start)
    with _readable(f"--start-from {path}", "run"):
        content = path.read_bytes()
    # Its layout is that of training.run.checkpoints.
    digest = hashlib.sha256(content[32:])
    if digest.digest() != content[:32]:
        raise ConfigError(
            f"--start-from {path} is damaged, or not a file of variables: name another"
        )
    return digest.hexdigest()


def start_file(start: str) -> Path:
    """The file of variables that ``--start-from`` names; of a cascade the last stage's.

    Raises:
      ConfigError: If it is no file, and not the directory of a run that has one.
    """
    with _readable(f"--start-from {start}", "run"):
        path = Path(start).expanduser()
        if path.is_file():
            return path
        found = [
            *path.glob(File.BEST.value),
            *path.glob(f"{File.STAGES}/*/{File.BEST}"),
        ]
    if not found:
        raise ConfigError(
            f"--start-from {start} holds no run that has recorded an epoch: name the "
            f"work directory of one"
        )
    return max(found)


def digest(path: str) -> str:
    """The SHA-256 digest of a file of weights.

    Raises:
      ConfigError: If it cannot be read.
    """
    return hashlib.sha256(_content(path)).hexdigest()


def read(path: str, sha256: str) -> dict[str, np.ndarray]:
    """Reads the arrays of a file of weights by name, if it has this digest.

    Raises:
      ConfigError: If it cannot be read, is not such a file or not this one, or has
        values that are not finite floats.
    """
    content, what = _content(path), f"--initial-weights {path}"
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ConfigError(
            f"{what} has the SHA-256 digest {found}, not {sha256}: restore the file "
            f"that was meant"
        )
    try:
        arrays = _parse(content, path)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{what} needs {error.name}: pip install {error.name}"
        ) from error
    except Exception as error:  # of many kinds, by what is damaged
        raise ConfigError(
            f"{what} is damaged or of another format ({error}): save the weights "
            f"again, with numpy.savez or safetensors"
        ) from error
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            problem = f"of type {array.dtype}, and must be of floats"
        elif not np.isfinite(array).all():
            problem = "not finite"
        else:
            continue
        raise ConfigError(f"{what}: {name} is {problem}: save other weights")
    return arrays


def _content(path: str) -> bytes:
    what = f"--initial-weights {path}"
    if not path.endswith(FORMATS):
        raise ConfigError(f"{what} must end in {' or '.join(FORMATS)}")
    with _readable(what, "file"):
        return Path(path).expanduser().read_bytes()


@contextlib.contextmanager
def _readable(what: str, kind: str) -> Iterator[None]:
    """Raises ConfigError if a path cannot be read."""
    try:
        yield
    # It may hold a null byte, or begin with the home of an unknown user.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{what} cannot be read ({reason}): name another {kind}"
        ) from error


def _parse(content: bytes, path: str) -> dict[str, np.ndarray]:
    if path.endswith(".npz"):
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
    else:
        import safetensors.numpy  # only such files need it

        arrays = safetensors.numpy.load(content)
    return {n: x for n, x in arrays.items() if not n.endswith("num_batches_tracked")}
