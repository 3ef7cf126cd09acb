"""Selectors of the layers to amplify, for :func:`plp_optax.amplify_layers`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plp_optax import _checks


class Selector(NamedTuple):
    """Chooses layers at the end of an analysis epoch.

    :func:`by_score`, :func:`at_random`, :func:`all_layers` and :func:`named` return
    one. Any pair of such functions is a selector.

    Attributes:
      check: Called by ``init`` with the names of the L layers; raises ``ValueError``
        if nothing can be chosen among them.
      choose: Maps the names, the z-scores ``[L]`` and the number of selections so far
        (an int32 scalar) to a bool array ``[L]``: the layers to amplify. It is traced.
    """

    check: Callable[[tuple[str, ...]], None]
    choose: Callable[[tuple[str, ...], jax.Array, jax.Array], jax.Array]


def by_score(
    threshold: float | jax.Array = 1.5,
    *,
    two_sided: bool = False,
    lowest: bool = False,
) -> Selector:
    r"""Selects the layers whose score stands out, as in the paper.

    Args:
      threshold: In standard deviations of the scores from their mean; at least 0.
        Among L layers no z-score exceeds :math:`\sqrt{L - 1}`. A scalar jax array may
        be traced; see :func:`plp_optax.amplify_layers` for its injection.
      two_sided: False selects :math:`z > \text{threshold}` (the paper's case 1), True
        :math:`|z| > \text{threshold}` (case 2).
      lowest: Selects :math:`z < -\text{threshold}`, the least consistent layers; with
        the factor 0 of :func:`amplify_layers` these are frozen.

    Returns:
      A :class:`Selector`.

    Raises:
      ValueError: If an argument is not as above; from ``init``, if no z-score can
        exceed the threshold.
    """
    _checks.check_number("threshold", threshold, low=0)
    _checks.check_bool("two_sided", two_sided)
    _checks.check_bool("lowest", lowest)
    if two_sided and lowest:
        raise ValueError("two_sided selects the lowest too: give one of them")

    def check(names: tuple[str, ...]) -> None:
        bound = np.sqrt(len(names) - 1)
        usual = (np.ceil(10 * bound) - 1) / 10  # in tenths, below the bound
        if not isinstance(threshold, jax.Array) and threshold >= bound:
            raise ValueError(
                f"threshold {threshold} cannot be exceeded: among {len(names)} layers "
                f"no z-score is above {bound:.3g}"
                + (f": choose at most {usual:g}" if usual > 0 else "")
            )

    def choose(
        names: tuple[str, ...], z_scores: jax.Array, selections: jax.Array
    ) -> jax.Array:
        del names, selections
        limit = jnp.asarray(threshold, z_scores.dtype)
        if two_sided:
            return jnp.abs(z_scores) > limit
        return (-z_scores if lowest else z_scores) > limit

    return Selector(check, choose)


def at_random(ratio: float, *, seed: int = 0) -> Selector:
    """Selects layers at random, newly drawn at each selection: a control.

    The draw depends only on the seed and the number of the selection, so every device
    draws the same layers.

    Args:
      ratio: The share of the layers, in (0, 1]; at least one is drawn.
      seed: Seed of the draws.

    Returns:
      A :class:`Selector`.

    Raises:
      ValueError: If an argument is not as above.
    """
    if isinstance(ratio, jax.Array):
        raise ValueError(f"ratio must be a number, got a jax array ({ratio!r})")
    _checks.check_number("ratio", ratio, above=0, high=1)
    _checks.check_int("seed", seed, low=0)

    def choose(
        names: tuple[str, ...], z_scores: jax.Array, selections: jax.Array
    ) -> jax.Array:
        del z_scores
        # Named, since draws of other kinds of keys may differ between backends.
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), selections)
        drawn = max(1, round(ratio * len(names)))
        # Exactly that many entries of a permutation of 0, 1, ... are less than it.
        return jax.random.permutation(key, len(names)) < drawn

    return Selector(lambda names: None, choose)


def all_layers() -> Selector:
    """Selects every layer: a control.

    Returns:
      A :class:`Selector`.
    """
    return Selector(
        lambda names: None,
        lambda names, z_scores, selections: jnp.ones(len(names), bool),
    )


def named(*names: str) -> Selector:
    """Selects the same layers every time, by name.

    Args:
      *names: Names as :func:`plp_optax.layer_names` gives them; at least one.

    Returns:
      A :class:`Selector`.

    Raises:
      ValueError: If an argument is not as above; from ``init``, if a layer does not
        exist.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"named takes names of layers, at least one, got {names!r}")

    def check(existing: tuple[str, ...]) -> None:
        if unknown := sorted(set(names) - set(existing)):
            raise ValueError(
                f"there are no layers named {', '.join(unknown)}; the layers are "
                f"{', '.join(existing)}"
            )

    def choose(
        existing: tuple[str, ...], z_scores: jax.Array, selections: jax.Array
    ) -> jax.Array:
        del z_scores, selections
        return jnp.asarray([name in names for name in existing], bool)

    return Selector(check, choose)
