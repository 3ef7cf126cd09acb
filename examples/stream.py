"""A stream of samples, each seen once: the Kalman filter, and a network that grows.

The task is to predict the next value of the Henon map from the last two. A network of
fixed size learns by SGD, by Adam and by the filter. A resource-allocating network
(Platt, 1991) begins without units and adds one at a sample that is far from all units
and badly predicted; other samples move its parameters by SGD.

python examples/stream.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import plp_optax
from models import ran

SAMPLES, LAST, UNITS = 600, 100, 12


def henon(length: int) -> np.ndarray:
    """The map 1 - 1.4 x^2 + 0.3 x_before, which is chaotic."""
    x = [0.1, 0.1]
    for _ in range(length):
        x.append(1 - 1.4 * x[-1] ** 2 + 0.3 * x[-2])
    return np.array(x, np.float32)


def predict(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """One hidden layer of tanh units: from x (2,) to a scalar."""
    return params["output"] @ jnp.tanh(params["input"] @ x + params["bias"])


def fixed(tx: optax.GradientTransformationExtraArgs, x: jax.Array, y: jax.Array):
    """Errors of a network of fixed size, each before it learns from the sample."""
    shapes = {"input": (UNITS, 2), "bias": (UNITS,), "output": (UNITS,)}
    params = {
        name: jax.random.normal(jax.random.key(i), shape) / 2
        for i, (name, shape) in enumerate(shapes.items())
    }

    def step(carry, sample):
        params, state = carry
        prediction, jacobian = jax.value_and_grad(predict)(params, sample[0])
        error = sample[1] - prediction
        if is_filter:  # it takes the Jacobian itself
            updates, state = tx.update(jacobian, state, innovation=error)
        else:  # the gradient of error^2 / 2
            gradient = jax.tree.map(lambda j: -error * j, jacobian)
            updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), error

    state = tx.init(params)
    is_filter = isinstance(state, plp_optax.EKFState)
    return jax.jit(lambda c: jax.lax.scan(step, c, (x, y)))((params, state))[1]


def growing(x: jax.Array, y: jax.Array, rate: float = 0.05):
    """Errors of a network that grows, and its units after each sample."""

    def step(network, sample):
        t, inputs, target = sample
        prediction, jacobian = ran.linearize(network, inputs)
        error = target - prediction
        # It becomes finer: new units are nearer to others, and narrower.
        resolution = jnp.maximum(jnp.exp(-t / 60), 0.15)
        distance = jnp.minimum(ran.nearest(network, inputs), resolution * 2)
        is_novel = (abs(error) > 0.02) & (distance > resolution)
        grown = ran.allocate(network, inputs, error, 0.87 * distance)
        step_size = rate * error
        moved = jax.tree.map(lambda p, j: p + step_size * j, network.params, jacobian)
        moved = network._replace(params=moved)
        network = jax.tree.map(lambda a, b: jnp.where(is_novel, a, b), grown, moved)
        return network, (error, network.units)

    samples = (jnp.arange(len(y)), x, y)
    return jax.jit(lambda n: jax.lax.scan(step, n, samples))(ran.create(60, 2))[1]


def main() -> dict[str, float]:
    """Learns the stream in each way; returns the errors over its end."""
    series = henon(SAMPLES)
    x, y = jnp.stack([series[:-2], series[1:-1]], axis=1), jnp.asarray(series[2:])
    errors = {
        "SGD": fixed(optax.with_extra_args_support(optax.sgd(0.1)), x, y),
        "Adam": fixed(optax.with_extra_args_support(optax.adam(0.01)), x, y),
        "EKF": fixed(plp_optax.ekf(measurement_noise=0.01), x, y),
    }
    errors["growing network"], units = growing(x, y)
    found = {n: float(jnp.sqrt(jnp.mean(e[-LAST:] ** 2))) for n, e in errors.items()}
    for name, error in found.items():
        print(f"{name}: error {error:.4f} over the last {LAST} of {SAMPLES} samples")
    print(f"units of the growing network: {units[49]}, {units[199]}, {units[-1]}")
    return found | {"units": int(units[-1])}


if __name__ == "__main__":
    main()
