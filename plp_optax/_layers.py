"""Which layer each parameter belongs to."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Layers = str | Sequence[tuple[str, str | None]] | Callable[[str], str | None]


def layer_names(params: Any, layers: Layers = "kernels") -> tuple[str, ...]:
    r"""Names of a tree's layers, in the order of their first parameters.

    Args:
      params: Parameters of linen, nnx or equinox modules, or any other tree.
      layers: The rule. ``"kernels"``: modules with a ``kernel``, or with a ``weight``
        of two dimensions or more, each with its bias. ``"modules"``: all modules,
        normalisation included. Pairs of a regular expression and a name: the first
        expression that matches a parameter's whole path names its layer, with
        ``\1`` for groups, or ``None`` for no layer; every parameter must be matched.
        A function: from the path to the name or ``None``. Paths are such as
        ``stage1/block0/conv1/kernel``.

    Returns:
      The names, each once.

    Raises:
      ValueError: If the rule does not exist, leaves a parameter unmatched, or finds
        no layer.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {
      ...     "conv": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.ones(4)},
      ...     "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
      ... }
      >>> layer_names(params)
      ('conv',)
      >>> layer_names(params, "modules")
      ('conv', 'norm')
      >>> layer_names(params, [("norm/.*", None), (r"(\w+)/.*", r"layer-\1")])
      ('layer-conv',)
    """
    check_layers(layers)
    return tuple(dict.fromkeys(n for n in assign_layers(params, layers) if n))


def assign_layers(params: Any, layers: Layers = "kernels") -> list[str | None]:
    """The layer of each leaf, in the order of ``jax.tree.leaves``."""
    leaves = [
        (_path(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    names = [name or None for name in _rule(layers, leaves)]
    for (path, _), name in zip(leaves, names, strict=True):
        if not isinstance(name, str | None):
            raise ValueError(
                f"layers must give a name or None, got {name!r} for the parameter "
                f"{path!r}"
            )
    if leaves and not any(names):
        raise ValueError(
            f"layers={layers!r} finds no layer among {len(leaves)} parameters such as "
            f"{leaves[0][0]!r}"
        )
    return names


def check_layers(layers: Layers) -> None:
    """Raises unless ``layers`` is a rule."""
    if isinstance(layers, str):
        if layers not in ("kernels", "modules"):
            raise ValueError(
                f"layers must be 'kernels', 'modules', pairs of a pattern and a name, "
                f"or a function, got {layers!r}"
            )
    elif not callable(layers):
        try:
            for pattern, name in layers:
                re.compile(pattern)
                if not isinstance(name, str | None):
                    raise TypeError
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(
                f"layers must be pairs of a regular expression and a name or None, "
                f"got {layers!r}"
            ) from error


def _rule(layers: Layers, leaves: list[tuple[str, Any]]) -> list[str | None]:
    paths = [path for path, _ in leaves]
    if layers == "modules":
        return [_module(path) for path in paths]
    if layers == "kernels":
        members: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for path, leaf in leaves:
            members[_module(path)].append((path.rpartition("/")[2], leaf))
        chosen = {
            module
            for module, parts in members.items()
            if any(
                name == "kernel" or (name == "weight" and jnp.ndim(leaf) >= 2)
                for name, leaf in parts
            )
        }
        return [m if (m := _module(path)) in chosen else None for path in paths]
    if callable(layers):
        return [layers(path) for path in paths]
    return [_first_match(layers, path) for path in paths]


def _first_match(layers: Any, path: str) -> str | None:
    for pattern, name in layers:
        if match := re.fullmatch(pattern, path):
            try:
                return None if name is None else match.expand(name)
            except re.error as error:
                raise ValueError(
                    f"{name!r} is no name for a match of {pattern!r}: {error}"
                ) from error
    raise ValueError(
        f"no pattern of layers matches the parameter {path!r}: add one, with the name "
        f"None if it belongs to no layer"
    )


def _path(path: Any) -> str:
    """``stage1/conv/kernel``; an nnx variable's own ``value`` is left out."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _module(path: str) -> str:
    return path.rpartition("/")[0] or "."
