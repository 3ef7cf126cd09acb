"""The layer that each parameter belongs to."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plp_optax import _checks


@dataclasses.dataclass(frozen=True)
class Stacked:
    """A rule for parameters that hold several layers; see :func:`stacked`.

    Attributes:
      pattern: A regular expression for the paths of stacked parameters.
      axis: The axis of the slices.
      layers: The rule for one slice.
    """

    pattern: str
    axis: int
    layers: Any


LayerRule = (
    str | Sequence[tuple[str, str | None]] | Callable[[str], str | None] | Stacked
)


def stacked(pattern: str, *, axis: int = 0, layers: LayerRule = "kernels") -> Stacked:
    """A rule for parameters that stack several layers along an axis.

    ``nn.scan`` and ``nnx.vmap`` hold a network's blocks as one block whose parameters
    have a leading axis. With this rule each slice is a layer with a score and a
    factor: ``blocks/dense[0]``, ``blocks/dense[1]``, ...

    Args:
      pattern: A regular expression; parameters whose entire path it matches are
        stacked.
      axis: The axis of the slices.
      layers: The rule that names the layer of one slice, as in :func:`layer_names`.

    Returns:
      A rule for the argument ``layers`` of :func:`layer_names`,
      :func:`amplify_layers`, :func:`layer_analyses` and :func:`layer_table`.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {
      ...     "blocks": {"dense": {"kernel": jnp.ones((3, 4, 4))}},
      ...     "head": {"kernel": jnp.ones((4, 2))},
      ... }
      >>> layer_names(params, stacked("blocks/.*"))
      ('blocks/dense[0]', 'blocks/dense[1]', 'blocks/dense[2]', 'head')
    """
    try:
        re.compile(pattern)
    except (TypeError, re.error) as error:
        raise ValueError(
            f"pattern must be a regular expression, got {pattern!r}"
        ) from error
    _checks.check_int("axis", axis, low=0)
    check_layers(layers)
    return Stacked(pattern, axis, layers)


def layer_names(params: Any, layers: LayerRule = "kernels") -> tuple[str, ...]:
    r"""Names of a tree's layers, in the order of their first parameters.

    Args:
      params: Parameters of linen, nnx or equinox modules, or any other tree.
      layers: The rule, one of

        - ``"kernels"``: modules with a ``kernel``, an ``embedding``, or a ``weight`` of
          two dimensions or more, each with its bias.
        - ``"modules"``: all modules, normalisation included.
        - Pairs of a regular expression and a name. The first expression that matches a
          parameter's entire path names its layer, with ``\1`` for groups, or ``None``
          for no layer. Every parameter must be matched.
        - A function from the path to the name or ``None``.
        - :func:`stacked`, for parameters that hold several layers.

        A path is such as ``stage1/block0/conv1/kernel``.

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
    return assign_layers(params, layers).names


class Place(NamedTuple):
    """Where a parameter counts.

    Attributes:
      start: The index of its layer, or of the layer of its first slice.
      size: How many layers it holds.
      axis: The axis along which it holds them; None for one layer.
    """

    start: int
    size: int = 1
    axis: int | None = None


class Assignment(NamedTuple):
    """A tree's layers.

    Attributes:
      names: The names of the L layers.
      places: The place of each leaf, None counting as a leaf; None outside of layers.
    """

    names: tuple[str, ...]
    places: list[Place | None]


def assign_layers(params: Any, layers: LayerRule = "kernels") -> Assignment:
    """Finds the layers of a tree and where each of its leaves counts."""
    check_layers(layers)
    paths = [(path, leaf) for path, leaf in _paths(params)]
    leaves = [_Leaf(p, jnp.shape(leaf)) for p, leaf in paths if leaf is not None]
    rows = iter(_rule(layers, leaves))
    given = [None if leaf is None else next(rows) for _, leaf in paths]
    if leaves and not any(given):
        raise ValueError(
            f"layers={layers!r} finds no layer among {len(leaves)} parameters such as "
            f"{leaves[0].path!r}; layers='modules' takes every module"
        )
    # First the layers in their order, then the places of their first slices.
    found: dict[str, tuple[int, bool]] = {}  # slices, and whether they are stacked
    for (path, leaf), row in zip(paths, given, strict=True):
        if row is not None:
            name, axis = row
            size = 1 if axis is None else jnp.shape(leaf)[axis]
            if found.setdefault(name, (size, axis is not None)) != (
                size,
                axis is not None,
            ):
                raise ValueError(
                    f"the parameter {path!r} holds {size} slices of the layer "
                    f"{name!r}, others hold {found[name][0]}"
                )
    names: list[str] = []
    start = {}
    for name, (size, is_stacked) in found.items():
        start[name] = len(names)
        names += [f"{name}[{i}]" for i in range(size)] if is_stacked else [name]
    return Assignment(
        tuple(names),
        [
            row and Place(start[row[0]], found[row[0]][0], row[1])  # None stays None
            for row in given
        ],
    )


def check_layers(layers: LayerRule) -> None:
    """Raises unless ``layers`` is a rule."""
    if isinstance(layers, str):
        if layers not in ("kernels", "modules"):
            raise ValueError(
                f"layers must be 'kernels', 'modules', pairs of a pattern and a name, "
                f"or a function, got {layers!r}"
            )
    elif not callable(layers) and not isinstance(layers, Stacked):
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


class _Leaf(NamedTuple):
    path: str
    shape: tuple[int, ...]


def _rule(
    layers: LayerRule, leaves: list[_Leaf]
) -> list[tuple[str, int | None] | None]:
    """The layer of each leaf, and the axis of its slices."""
    if isinstance(layers, Stacked):
        return _stacked_rule(layers, leaves)
    names: list[Any]
    if layers == "modules":
        names = [_module(leaf.path) for leaf in leaves]
    elif layers == "kernels":
        names = _kernels_rule(leaves)
    elif callable(layers):
        names = [layers(leaf.path) for leaf in leaves]
    else:
        names = [_first_match(layers, leaf.path) for leaf in leaves]
    for leaf, name in zip(leaves, names, strict=True):
        if not isinstance(name, str | None):
            raise ValueError(
                f"layers must give a name or None, got {name!r} for the parameter "
                f"{leaf.path!r}"
            )
    return [(name, None) if name else None for name in names]


def _kernels_rule(leaves: list[_Leaf]) -> list[str | None]:
    members: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for path, shape in leaves:
        members[_module(path)].append((path.rpartition("/")[2], len(shape)))
    # A normalisation's scale is a `weight`, too, in equinox; it has one dimension.
    chosen = {
        module
        for module, parts in members.items()
        if any(
            name in ("kernel", "embedding") or (name == "weight" and ndim >= 2)
            for name, ndim in parts
        )
    }
    return [m if (m := _module(leaf.path)) in chosen else None for leaf in leaves]


def _stacked_rule(
    rule: Stacked, leaves: list[_Leaf]
) -> list[tuple[str, int | None] | None]:
    matched = [bool(re.fullmatch(rule.pattern, leaf.path)) for leaf in leaves]
    if not any(matched):
        raise ValueError(f"stacked({rule.pattern!r}) matches no parameter")
    slices = []  # the inner rule is given the shape of one slice
    for leaf, is_stacked in zip(leaves, matched, strict=True):
        if is_stacked and len(leaf.shape) <= rule.axis:
            raise ValueError(
                f"stacked({rule.pattern!r}, axis={rule.axis}): the parameter "
                f"{leaf.path!r} of shape {leaf.shape} has no such axis"
            )
        shape = leaf.shape[: rule.axis] + leaf.shape[rule.axis + 1 :]
        slices.append(leaf._replace(shape=shape) if is_stacked else leaf)
    rows = _rule(rule.layers, slices)
    for leaf, is_stacked, row in zip(leaves, matched, rows, strict=True):
        if is_stacked and row is not None and row[1] is not None:
            raise ValueError(f"the parameter {leaf.path!r} is stacked twice")
    return [
        (row[0], rule.axis) if is_stacked and row is not None else row
        for is_stacked, row in zip(matched, rows, strict=True)
    ]


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


def _paths(tree: Any) -> list[tuple[str, Any]]:
    """Paths such as ``stage1/conv/kernel`` and leaves, None counting as a leaf."""
    found = []
    for path, node in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: x is None or _is_box(x)
    ):
        inner = (
            jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is None)
            if _is_box(node)
            else [((), node)]
        )
        for rest, leaf in inner:  # a box's only field is no part of the name
            key = jax.tree_util.keystr((*path, *rest[1:]), simple=True, separator="/")
            found.append((key, leaf))
    return found


def _is_box(node: Any) -> bool:
    """Whether a node wraps a parameter, as Flax's variables and metadata do."""
    return any(
        c.__module__.split(".")[0] == "flax"
        and c.__name__ in ("Variable", "AxisMetadata")
        for c in type(node).__mro__
    )


def _module(path: str) -> str:
    return path.rpartition("/")[0] or "."
