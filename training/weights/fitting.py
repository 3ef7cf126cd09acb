"""Initial variables of a network: torchvision's by name, or those of a run."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from models import NETWORKS

# From our paths to torchvision's names, by the module of a network; the rules apply in
# turn. A name that ends in [query] is of that third of an array.
RULES = {
    "models.resnet": (
        (r"^stem/conv/", "conv1/"),
        (r"^stem/norm/", "bn1/"),
        (r"^stage(\d)/block(\d+)/", r"layer\1/\2/"),
        (r"/shortcut/conv/", "/downsample/0/"),
        (r"/shortcut/norm/", "/downsample/1/"),
        (r"/norm(\d)/", r"/bn\1/"),
        (r"^head/", "fc/"),
    ),
    "models.vit": (
        (r"^stem/patches/", "conv_proj/"),
        (r"^stem/class_token", "class_token"),
        (r"^stem/positions", "encoder/pos_embedding"),
        (r"^block(\d+)/", r"encoder/layers/encoder_layer_\1/"),
        (r"/attention/out/", "/self_attention/out_proj/"),
        (r"/attention/(\w+)/(\w+)$", r"/self_attention/in_proj_\2[\1]"),
        (r"/mlp/hidden/", "/mlp/0/"),
        (r"/mlp/output/", "/mlp/3/"),
        (r"/norm(\d)/", r"/ln_\1/"),
        (r"^norm/", "encoder/ln/"),
        (r"^head/", "heads/head/"),
    ),
    "models.efficientnet": (
        (r"^stem/", "features/0/"),
        (r"^last/", "features/8/"),
        (r"^head/", "classifier/1/"),
        (r"/squeeze/reduce/", "/squeeze/fc1/"),
        (r"/squeeze/expand/", "/squeeze/fc2/"),
        (r"/conv/", "/0/"),
        (r"/norm/", "/1/"),
        # The first stage does not expand.
        (r"^stage1/(\w+)/depthwise/", r"stage1/\1/0/"),
        (r"^stage1/(\w+)/squeeze/", r"stage1/\1/1/"),
        (r"^stage1/(\w+)/project/", r"stage1/\1/2/"),
        (r"/expand/", "/0/"),
        (r"/depthwise/", "/1/"),
        (r"/squeeze/", "/2/"),
        (r"/project/", "/3/"),
        (r"^stage(\d)/block(\d)/", r"features/\1/\2/block/"),
    ),
}
_PARTS = ("query", "key", "value")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# The names of ViT's MLP in the files that torchvision distributes.
_OLD_NAMES = ((".mlp.linear_1.", ".mlp.0."), (".mlp.linear_2.", ".mlp.3."))

# Our axes whose length may differ in a file: the number of classes, and what follows
# from the stem and the size of the images.
_MAY_DIFFER = {
    "params/head/kernel": (1,),
    "params/head/bias": (0,),
    "params/stem/conv/kernel": (0, 1, 2),
    "params/stem/patches/kernel": (0, 1, 2),
    "params/stem/positions": (1,),
}

_HEAD = "params/head/"

WITH_NAMES = tuple(name for name, of in NETWORKS.items() if of.module in RULES)


class Pretrained(NamedTuple):
    """A network's variables from a file, by path such as ``params/stem/norm/scale``.

    Those that are not here keep their random start. The notes are differences from the
    file, one clause each.
    """

    values: dict[str, np.ndarray]
    notes: tuple[str, ...]


def take_over(variables: Mapping[str, Any], shapes: Mapping[str, Any]) -> Pretrained:
    """The variables of another run for a network.

    A head of another kind or for another number of classes is left out.

    Args:
      variables: The variables, by path.
      shapes: Shapes and dtypes of the network's, by path.

    Raises:
      ValueError: If they are not of this network.
    """
    heads = [{p for p in of if p.startswith(_HEAD)} for of in (variables, shapes)]
    notes: tuple[str, ...] = ()
    if heads[0] != heads[1] or any(
        variables[path].shape != shapes[path].shape for path in heads[0]
    ):
        notes = ("its head has other sizes and starts at random",)
        variables, shapes = (
            {path: x for path, x in of.items() if not path.startswith(_HEAD)}
            for of in (variables, shapes)
        )
    values, others = _fit(variables, {path: path for path in shapes}, shapes)
    return Pretrained(values, notes + others)


def torch_name(model: str, path: str) -> str:
    """Torchvision's name of a network's variable, such as ``params/head/kernel``."""
    module, _, leaf = path.partition("/")[2].rpartition("/")
    name = f"{module}/{_LEAVES.get(leaf, leaf)}"
    for pattern, replacement in RULES[NETWORKS[model].module]:
        name = re.sub(pattern, replacement, name)
    return name.replace("/", ".")


def convert(
    arrays: Mapping[str, np.ndarray], model: str, shapes: Mapping[str, Any]
) -> Pretrained:
    """Converts arrays by torchvision's names to a network's variables.

    Args:
      arrays: The arrays.
      model: The network's name.
      shapes: Shapes and dtypes of its variables, by path.

    Returns:
      All variables, except a head for another number of classes and the kernel of a
      stem of another size. The positions of another number of patches are interpolated.

    Raises:
      ValueError: If the arrays are not those of the network.
    """
    names = {path: torch_name(model, path) for path in shapes}
    return _fit(_as_here(arrays), names, shapes, _order)


def _fit(
    arrays: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    shapes: Mapping[str, Any],
    order_of: Callable[[str, int], tuple[int, ...]] = lambda _, ndim: (*range(ndim),),
) -> Pretrained:
    """See :func:`convert`. ``names`` has the arrays' names by path.

    ``order_of`` gives the axes of an array in the order of ours.
    """
    missing = sorted(set(names.values()) - set(arrays))
    unknown = sorted(set(arrays) - set(names.values()))
    if missing or unknown:
        both = {"missing": missing, "unknown": unknown}
        raise ValueError(
            " and ".join(
                f"{len(some)} arrays are {what}, such as {some[0]}"
                for what, some in both.items()
                if some
            )
        )
    values, notes = {}, []
    for path, like in shapes.items():
        name, array = names[path], arrays[names[path]]
        order = order_of(path, len(like.shape))
        differs = (
            f"{name} is {list(array.shape)} in the file and "
            f"{[like.shape[i] for i in np.argsort(order)]} here"
        )
        if array.ndim != len(order):
            raise ValueError(differs)
        array = array.transpose(order)
        axes = [i for i in range(array.ndim) if array.shape[i] != like.shape[i]]
        if not set(axes) <= set(_MAY_DIFFER.get(path, ())):
            raise ValueError(differs)
        if axes and path == "params/stem/positions":
            array = _interpolated(array, like.shape[1])
            notes.append(f"{differs} and is interpolated")
        elif axes:
            notes.append(f"{differs} and starts at random")
            continue
        values[path] = array.astype(like.dtype)
    return Pretrained(values, tuple(notes))


def _as_here(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by today's names, with attention's query, key and value apart."""
    found = {}
    for name, array in arrays.items():
        for old, new in _OLD_NAMES:
            name = name.replace(old, new)
        if re.search(r"\.in_proj_(weight|bias)$", name) and array.ndim:
            for part, rows in zip(_PARTS, np.array_split(array, 3), strict=True):
                found[f"{name}[{part}]"] = rows
        else:
            found[name] = array
    return found


def _order(path: str, ndim: int) -> tuple[int, ...]:
    """The axes of torchvision's array in the order of ours.

    Its kernels are (outputs, inputs, height, width) or (outputs, inputs).
    """
    if not path.endswith("/kernel"):
        return tuple(range(ndim))
    return (2, 3, 1, 0) if ndim == 4 else (1, 0)


def _interpolated(positions: np.ndarray, tokens: int) -> np.ndarray:
    """Positions ``[1, n, channels]`` for a class token and another square of patches.

    Dosovitskiy et al., arXiv 2010.11929, section 3.2.
    """
    import jax

    old, new = (math.isqrt(n - 1) for n in (positions.shape[1], tokens))
    if (old**2, new**2) != (positions.shape[1] - 1, tokens - 1):
        raise ValueError("positions are of patches that do not form a square")
    channels = positions.shape[-1]
    grid = positions[:, 1:].reshape(old, old, channels)
    grid = jax.image.resize(grid, (new, new, channels), "bicubic")
    return np.concatenate(
        [positions[:, :1], np.asarray(grid).reshape(1, -1, channels)], axis=1
    )
