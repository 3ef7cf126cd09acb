"""Unit tests of a chain of one's own, with chex.

python examples/chain_test.py
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import plp_optax

# Before JAX is used; `chex.set_n_cpu_devices(4)` does the same by way of XLA_FLAGS.
jax.config.update("jax_num_cpu_devices", 4)

RATE, FACTOR = 0.1, 3.0


def make_chain() -> optax.GradientTransformationExtraArgs:
    """Amplifies the body from the second step on, and predicts once in four steps."""
    window = plp_optax.AmplificationWindow(0, 9, epoch_steps=1, factor=FACTOR)
    return optax.chain(
        plp_optax.amplify_layers([window], select=plp_optax.named("body")),
        optax.sgd(RATE),
        plp_optax.plp(period=4),
    )


def make_params() -> dict[str, dict[str, jax.Array]]:
    """Two layers, as Flax names them."""
    return {"body": {"kernel": jnp.ones((2, 3))}, "head": {"kernel": jnp.ones((3, 1))}}


def run(update, steps: int):
    """Parameters after each step with a gradient of ones."""
    params = gradient = make_params()
    state, history = make_chain().init(params), []
    for _ in range(steps):
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


class ChainTest(chex.TestCase):
    """The chain means the same in every way in which JAX runs it."""

    @chex.all_variants(with_pmap=False)
    def test_the_first_three_steps(self):
        """The third one jumps half a step further, along the line through three."""
        history = run(self.variant(make_chain().update), 3)
        steps = {"body": [1, 1 + FACTOR, 1 + 2.5 * FACTOR], "head": [1, 2, 3.5]}
        for name, layer in make_params().items():
            for found, way in zip(history, steps[name], strict=True):
                expected = jax.tree.map(lambda p, way=way: p - RATE * way, layer)
                chex.assert_trees_all_close(found[name], expected, rtol=1e-5)

    @chex.variants(with_jit=True, with_pmap=True)
    def test_the_state_keeps_its_shapes_and_types(self):
        """Under pmap the variant copies the arguments to all devices."""
        params = make_params()
        state = make_chain().init(params)
        updates, after = self.variant(make_chain().update)(params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_tree_all_finite(updates)

    def test_it_compiles_once(self):
        """However long it runs: the phases are part of the state."""
        chex.clear_trace_counter()
        run(jax.jit(chex.assert_max_traces(make_chain().update, n=1)), 8)

    def test_several_devices_take_the_step_of_the_mean_gradient(self):
        """On four CPU devices, and on one that stands for four (`fake_pmap`)."""
        chex.assert_devices_available(4, "cpu")
        params = make_params()
        state = make_chain().init(params)
        shares = np.array([0.0, 1.0, 1.0, 2.0], np.float32)  # mean 1
        parts = jax.tree.map(lambda p: jnp.multiply.outer(shares, p), params)

        def step(gradient, state, params):
            gradient = jax.lax.pmean(gradient, "batch")
            return make_chain().update(gradient, state, params)[0]

        def check():
            mapped = jax.pmap(step, axis_name="batch", in_axes=(0, None, None))
            expected = jax.tree.map(lambda p: jnp.full((4, *p.shape), -RATE), params)
            found = mapped(parts, state, params)
            chex.assert_trees_all_close(found, expected, rtol=1e-6)

        check()
        with chex.fake_pmap():
            check()


if __name__ == "__main__":
    absltest.main()
