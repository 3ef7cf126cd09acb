"""A resource-allocating network: Gaussian units that are added one by one.

Arrays have the size of the capacity, and a mask says which units exist, so that a
network that grows keeps its shapes and compiles once.

References:
  Platt, "A Resource-Allocating Network for Function Interpolation", Neural
  Computation 3(2), 1991.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike


class Params(NamedTuple):
    """The parameters.

    Attributes:
      bias: The output without units; a scalar.
      weights: The units' heights, shape (capacity,).
      centers: The units' centres, shape (capacity, inputs).
    """

    bias: jax.Array
    weights: jax.Array
    centers: jax.Array


class GrowingNetwork(NamedTuple):
    """A network, or a tree of networks that ``jax.vmap`` maps over.

    Attributes:
      params: The parameters; those of units that do not exist are 0.
      widths: The units' widths, shape (capacity,); 1 where there is no unit.
      active: Which units exist, the first ones; bool, shape (capacity,).
    """

    params: Params
    widths: jax.Array
    active: jax.Array

    @property
    def units(self) -> jax.Array:
        """How many units exist; an int32 scalar."""
        return jnp.sum(self.active, dtype=jnp.int32)


def create(
    capacity: int, inputs: int, dtype: DTypeLike = jnp.float32
) -> GrowingNetwork:
    """Returns a network without units, whose output is 0.

    Args:
      capacity: The number of units that it can have, at least 1.
      inputs: The length of an input, at least 1.
      dtype: The floating type of everything but the mask.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax.numpy as jnp
      >>> from models import ran
      >>> network = ran.create(capacity=3, inputs=2)
      >>> network = ran.allocate(network, jnp.array([1.0, 0.0]), 2.0, width=0.5)
      >>> network.active.tolist()
      [True, False, False]
      >>> float(ran.predict(network, jnp.array([1.0, 0.5])))  # 2 exp(-1)
      0.7357...
    """
    for name, size in (("capacity", capacity), ("inputs", inputs)):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating type, got {dtype!r}")
    return GrowingNetwork(
        Params(
            bias=jnp.zeros((), dtype),
            weights=jnp.zeros(capacity, dtype),
            centers=jnp.zeros((capacity, inputs), dtype),
        ),
        widths=jnp.ones(capacity, dtype),
        active=jnp.zeros(capacity, bool),
    )


def predict(network: GrowingNetwork, x: jax.Array) -> jax.Array:
    """The output for one input: b + sum_h a_h exp(-|c_h - x|^2 / w_h^2).

    Args:
      network: The network.
      x: An input, shape (inputs,).

    Returns:
      A scalar.
    """
    bias, weights, centers = network.params
    squares = jnp.sum((centers - x[None]) ** 2, axis=1)
    # Where there is no unit, the width of 1 keeps the quotient's gradient finite.
    activations = jnp.exp(-squares / network.widths**2)
    return bias + jnp.sum(jnp.where(network.active, weights * activations, 0))


def linearize(network: GrowingNetwork, x: jax.Array) -> tuple[jax.Array, Params]:
    """The output for one input, and its derivatives by the parameters.

    Those by parameters of units that do not exist are 0.
    """
    return jax.value_and_grad(
        lambda params: predict(network._replace(params=params), x)
    )(network.params)


def nearest(network: GrowingNetwork, x: jax.Array) -> jax.Array:
    """The distance from an input to the nearest centre; infinite without units."""
    distances = jnp.linalg.norm(network.params.centers - x[None], axis=1)
    return jnp.min(jnp.where(network.active, distances, jnp.inf))


def allocate(
    network: GrowingNetwork, center: jax.Array, weight: ArrayLike, width: ArrayLike
) -> GrowingNetwork:
    """Returns the network with one more unit, or as it is if all units exist.

    Args:
      network: The network.
      center: The unit's centre, shape (inputs,).
      weight: Its height.
      width: Its width, positive.
    """
    # True at the first free place, and nowhere if there is none.
    new = jnp.arange(len(network.active)) == network.units
    bias, weights, centers = network.params
    return GrowingNetwork(
        Params(
            bias,
            weights=jnp.where(new, weight, weights),
            centers=jnp.where(new[:, None], center[None], centers),
        ),
        widths=jnp.where(new, width, network.widths),
        active=network.active | new,
    )


def parameters_of(units: jax.Array, like: Params) -> Params:
    """Which parameters belong to the units of a mask; bools shaped like ``like``."""
    return Params(
        bias=jnp.zeros((), bool),
        weights=units,
        centers=jnp.broadcast_to(units[:, None], like.centers.shape),
    )
