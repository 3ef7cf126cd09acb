"""Our networks compute what PyTorch computes: see torch_reference/make_vectors.py."""

import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import models
from training.weights import fitting

VECTORS = np.load(pathlib.Path(__file__).with_name("torch_reference") / "vectors.npz")
OPTIONS = {
    "resnet18": {"width": 8},
    "resnet50": {"width": 4, "stem": "imagenet"},
    "vgg16": {"width": 8},
    "googlenet": {"width": 16},
    "resnet18-shallow": {"width": 4},
    "vgg16-shallow": {"width": 4},
    "vit-tiny": {"width": 8},
    "efficientnet-b0": {"width": 64},
}
CLONED = {
    "resnet18-shallow": {"depths": (2, 1, 1, 1)},
    "vgg16-shallow": {"depths": (1, 1, 2, 1, 1)},
    "efficientnet-b0": {"stochastic_depth_rate": 0.0},
}
# From our paths to the reference's names; the rules apply in turn. The other networks'
# have torchvision's names, and are read as a file of weights is.
RULES = {
    "vgg": [
        (r"stage(\d)/conv(\d)", r"conv\1_\2"),
        (r"stage(\d)/norm(\d)", r"bn\1_\2"),
        (r"head/hidden1", "fc6"),
        (r"head/hidden2", "fc7"),
        (r"head/output", "fc8"),
    ],
    "googlenet": [
        (r"stem/conv(\d)", lambda m: f"stem/{int(m[1]) - 1}/conv"),
        (r"stem/norm(\d)", lambda m: f"stem/{int(m[1]) - 1}/bn"),
        (r"stage(\d)/block(\d)", lambda m: f"inception{m[1]}{'abcde'[int(m[2])]}"),
        (r"/conv1/(conv|norm)", r"/b1/\1"),
        (r"/reduce(3|5)", r"/b\1/0"),
        (r"/conv3/", "/b3/1/"),
        (r"/conv5a", "/b5/1"),
        (r"/conv5b", "/b5/2"),
        (r"/pool", "/proj"),
        (r"/norm", "/bn"),
        (r"head", "fc"),
    ],
}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_name(network, path):
    network = network.removesuffix("-shallow")
    family = network.rstrip("0123456789")
    if family not in RULES:
        return fitting.torch_name(network, path)
    module, leaf = path.split("/", 1)[1].rsplit("/", 1)
    for pattern, replacement in RULES[family]:
        module = re.sub(pattern, replacement, module)
    return f"{module}/{LEAVES[leaf]}".replace("/", ".")


def draw(name, shape):
    """The recipe of make_vectors.py."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    if len(shape) > 1:
        return noise * np.sqrt(3 / np.prod(shape[1:]))
    if name.endswith(("weight", "running_var")):
        return 1 + noise / 2
    return noise / 2


def to_torch(array):
    """Kernels (..., inputs, outputs) become (outputs, inputs, ...)."""
    order = {2: (1, 0), 4: (3, 2, 0, 1)}.get(np.ndim(array))
    return np.transpose(array, order) if order else np.asarray(array)


def from_torch(array):
    order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(np.ndim(array))
    return np.transpose(array, order) if order else array


def drawn(name):
    """The reference's state, by its names."""
    shapes = (tuple(map(int, s.split(","))) for s in VECTORS[f"{name}/shapes"])
    return {
        n: draw(n, s) for n, s in zip(VECTORS[f"{name}/names"], shapes, strict=True)
    }


def to_variables(name, state, shapes):
    """Our variables, by their paths."""
    network = name.removesuffix("-shallow")
    if network in fitting.WITH_NAMES:
        converted = fitting.convert(state, network, shapes)
        assert not converted.notes
        return converted.values
    names = {path: torch_name(name, path) for path in shapes}
    assert sorted(names.values()) == sorted(state)
    return {path: from_torch(state[names[path]]) for path in shapes}


def by_reference(name, results):
    """Arrays by our paths, under the reference's names; projections are joined."""
    named = {torch_name(name, path): to_torch(x) for path, x in results.items()}
    whole = {n.removesuffix("[query]") for n in named if n.endswith("[query]")}
    parts = ("query", "key", "value")
    return named | {
        n: np.concatenate([named[f"{n}[{p}]"] for p in parts]) for n in whole
    }


# The others are slow tests.
QUICK = ("vgg16-shallow", "resnet18-shallow")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OPTIONS],
)
def test_agrees_with_pytorch(name):
    with jax.enable_x64(True):
        network = models.create(
            name.removesuffix("-shallow"),
            num_classes=10,
            dtype=jnp.float64,
            **OPTIONS[name],
        )
        if hasattr(network, "dropout_rate"):
            network = network.clone(dropout_rate=0.0)
        network = network.clone(**CLONED.get(name, {}))
        images = jnp.asarray(VECTORS["images"].transpose(0, 2, 3, 1))
        labels = jnp.asarray(VECTORS["labels"])
        shapes = jax.eval_shape(
            lambda: network.init(jax.random.key(0), images, train=False)
        )
        shapes = traverse_util.flatten_dict(shapes, sep="/")
        variables = traverse_util.unflatten_dict(
            to_variables(name, drawn(name), shapes), sep="/"
        )

        def loss_fn(params, batch_stats):
            logits, updates = network.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return loss.mean(), (logits, updates.get("batch_stats", {}))

        @jax.jit
        def run(variables):
            eval_logits = network.apply(variables, images, train=False)
            grads, (logits, stats) = jax.grad(loss_fn, has_aux=True)(
                variables["params"], variables.get("batch_stats", {})
            )
            return eval_logits, logits, {"params": grads, "batch_stats": stats}

        eval_logits, train_logits, results = run(variables)
    results = traverse_util.flatten_dict(results, sep="/")
    results = by_reference(name, results)

    def check(actual, key):
        desired = VECTORS[f"{name}/{key}"]
        atol = 1e-9 * np.abs(desired).max()
        np.testing.assert_allclose(actual, desired, rtol=1e-9, atol=atol, err_msg=key)

    check(eval_logits, "eval_logits")
    check(train_logits, "train_logits")
    checked = set()
    for key in VECTORS.files:
        entry, _, path = key.removeprefix(f"{name}/").partition("/")
        if not key.startswith(f"{name}/") or entry not in ("grad", "stats"):
            continue
        value = results[path]
        if path.endswith("running_var"):
            # PyTorch folds in the unbiased variance of the batch, flax the biased one.
            count, old = VECTORS[f"{name}/count"], 0.9 * draw(path, value.shape)
            value = old + (value - old) * count / (count - 1)
        check(value, f"{entry}/{path}")
        checked.add(entry)
    assert checked == ({"grad"} if name.startswith("vit") else {"grad", "stats"})
