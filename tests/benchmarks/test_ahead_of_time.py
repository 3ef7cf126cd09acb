"""Compiling the training step for devices that are not attached."""

import importlib.util
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import models
from benchmarks import ahead_of_time, measure, tables
from benchmarks.ahead_of_time import IMAGES
from training import data, recipe
from training.engine import parallel
from training.errors import ConfigError
from training.settings.methods import METHODS

DEVICES = 4
SMALL = {"model": "tiny", "width": 2, "precision": "float32"}
FLAGS = ["--platform=attached", "--model=tiny", "--width=2", "--precision=float32"]
FLAGS += ["--device-batch=4", "--steps-per-call=1"]

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='compiles for a TPU: pip install "jax[tpu]"',
)


@pytest.fixture
def quickly():
    """Compiles without most optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("fields", [{"steps_per_call": 2}, {"input": "host"}])
def test_arguments_are_those_of_training(fields):
    config = ahead_of_time.make_config(batch_size=8, **SMALL, **fields)
    dataset = measure.synthetic(64)
    program = recipe.assemble(config, dataset)
    mesh = ahead_of_time.make_mesh("attached", "all")
    assert mesh.size == DEVICES
    arguments = ahead_of_time.make_arguments(program, config, dataset, mesh)
    seen = []

    def see(step, *arguments, donate=False):
        seen.append(arguments)
        return SimpleNamespace(result=lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "compile_step", see)
        program.compile()

    def described(tree):
        return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)

    assert described(arguments) == described(seen[0])


def test_collectives_are_counted_with_their_bytes():
    mesh = Mesh(np.array(jax.devices()), ("x",))

    def step(x):
        total = jax.lax.psum(x, "x")
        parts = jax.lax.all_gather(x.astype(jnp.int8), "x")
        return total, parts.sum(), jax.lax.psum_scatter(total, "x", tiled=True)

    same, split = PartitionSpec(), PartitionSpec("x")
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=split,
        out_specs=(same, same, split),
        check_vma=False,
    )
    compiled = jax.jit(mapped).lower(jnp.ones((DEVICES * 8, 3))).compile()
    count, size = ahead_of_time.count_collectives(compiled.as_text())
    assert count == 3
    assert size == 4 * 8 * 3 + DEVICES * 8 * 3 + 4 * 8 * 3 / DEVICES


def test_collectives_of_a_tpu():
    hlo = """
  %a = (f32[2,3]{1,0:T(8,128)}, bf16[5]{0:T(256)(128)(2,1)S(1)}) all-reduce(%x, %y)
  %b = f32[]{:T(128)} all-reduce-start(%x), channel_id=2
  %c = f32[]{:T(128)} all-reduce-done(%b)
  %d = pred[7]{0} all-gather(%p), dimensions={0}
  %e = f32[9]{0} add(%all-reduce.1, %all-reduce.2)
"""
    assert ahead_of_time.count_collectives(hlo) == (3, 2 * 3 * 4 + 5 * 2 + 4 + 7)


@pytest.mark.slow
def test_the_command(quickly, tmp_path, capsys):
    out = tmp_path / "ahead.json"
    flags = [*FLAGS, "--topology=4", "--methods", "sgd", "plp", "--out", str(out)]
    assert ahead_of_time.main(flags) == 0
    assert "estimates of the compiler; nothing was run" in capsys.readouterr().out
    record = json.loads(out.read_text())
    sgd, plp = record["cells"]
    size = sgd["parameter_bytes"]
    # One buffer, and counters, flags and coefficients.
    assert size <= plp["state_bytes"] - sgd["state_bytes"] < size + 100
    for cell in (sgd, plp):
        assert cell["devices"] == DEVICES
        # The images, and their order and labels.
        resident = IMAGES * (32 * 32 * 3 + 4 + 4)
        assert 0 <= cell["argument_bytes"] - cell["state_bytes"] - resident < 1000
        # The gradient once, and statistics.
        assert size < cell["collective_bytes"] < 2 * size
        assert cell["peak_bytes"] >= cell["argument_bytes"] + cell["temporary_bytes"]
        assert cell["operations"] > 0
    record["cells"] = [sgd, {**plp, "failed": "not known"}]
    *_, failed = tables.TABLES["ahead_of_time"](record).partition("\n\n")[0].split("\n")
    cells = [cell.strip() for cell in failed.strip("|").split("|")]
    assert cells[2:] == ["plp", "failed", *("",) * (len(cells) - 4)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e"], "--topology v5e is not a kind of TPU and a layout"),
        (["--platform=cuda"], "v5e:2x2 is not slices x hosts x devices"),
        (["--platform=cuda", "--topology=1x1x2"], "--target-config was not given"),
        (["--platform=attached"], "v5e:2x2 is neither all nor a number of devices"),
        (["--platform=attached", "--topology=5"], "a number of devices from 1 to 4"),
        ([*FLAGS, "--topology=4", "--device-batch=20000"], "choose a smaller one"),
    ],
)
def test_bad_flags(flags, message, capsys):
    assert ahead_of_time.main(flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ahead_of_time: ")
    assert message in error


def test_without_libtpu(monkeypatch):
    def absent(**kwargs):
        raise RuntimeError("libtpu.so not found")

    monkeypatch.setattr(ahead_of_time.topologies, "get_topology_desc", absent)
    monkeypatch.setattr(ahead_of_time.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs libtpu"):
        ahead_of_time.make_mesh("tpu", "v5e:2x2")


# -- For a TPU -------------------------------------------------------------------------

# Instructions that exchange data with the host, such as a callback.
HOST_TRANSFER = re.compile(r"is_host_transfer=true|\b(?:in|out)feed\(")


def check_compiles(dataset=None, /, **fields):
    """Compiles a narrow network for four v5e, and looks for what a CPU would hide."""
    mesh = ahead_of_time.make_mesh("tpu", "v5e:2x2")
    fields = {"width": 4, "steps_per_call": 2} | fields
    config = ahead_of_time.make_config(batch_size=8 * mesh.size, **fields)
    dataset = dataset or measure.synthetic(1024)
    state, lowered = ahead_of_time.lower_step(mesh, config, dataset, IMAGES)
    compiled = lowered.compile()
    made = ahead_of_time.describe(state, compiled)
    assert made["collective_bytes"] > made["parameter_bytes"]
    # The state is donated, and returned where it was.
    assert compiled.memory_analysis().alias_size_in_bytes >= made["state_bytes"]
    program = compiled.as_text()
    assert not HOST_TRANSFER.search(program)
    assert ("f64[" in program) == (config.precision == "float64")
    return made


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", models.NETWORKS)
def test_every_network_compiles_for_a_tpu(model, precision):
    made = check_compiles(model=model, precision=precision)
    # A copy of the images in tiles would be a multiple of them.
    assert made["temporary_bytes"] < IMAGES * 32 * 32 * 3


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_compiles_for_a_tpu(method, precision):
    threshold = 1.0 if "amplify" in method else None
    check_compiles(
        model="tiny", method=method, precision=precision, amplify_threshold=threshold
    )


@pytest.mark.slow
@needs_libtpu
def test_vgg_on_digits_compiles_for_a_tpu():
    digits = data.load("digits")
    assert digits.train.images.shape[1:] == (8, 8, 1)
    check_compiles(digits, model="vgg16", dataset="digits")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("precision", ["float16", "float64"])
def test_other_precisions_compile_for_a_tpu(precision):
    with jax.enable_x64(precision == "float64"):
        check_compiles(model="tiny", precision=precision)


@pytest.mark.slow
@needs_libtpu
def test_a_callback_would_be_seen():
    mesh = ahead_of_time.make_mesh("tpu", "v5e:2x2")
    x = jax.ShapeDtypeStruct(
        (8,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())
    )

    def step(x):
        jax.debug.print("{}", x.sum())
        return 2 * x

    assert HOST_TRANSFER.search(jax.jit(step).lower(x).compile().as_text())
