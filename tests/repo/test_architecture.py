"""Which module may import which."""

import ast
import fnmatch
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("plp_optax", "models", "training", "experiments", "benchmarks")

# For each part of the project: the other parts and the outside packages that it may
# import. None stands for any outside package. The longest matching entry counts.
PARTS = {
    "plp_optax": (set(), {"jax", "numpy", "optax"}),
    "plp_optax.linen": ({"plp_optax"}, {"flax", "jax"}),
    "models": (set(), {"flax", "jax", "numpy"}),
    "training.data": ({"training.errors", "training.settings.registry"}, None),
    "training": ({"plp_optax", "models", "training.data"}, None),
    "train": ({"training"}, None),
    "benchmarks": ({"plp_optax", "models", "training"}, None),
    "experiments": ({"plp_optax", "models", "training"}, None),
}

EXECUTION = ["experiments.runner", "experiments.trainer"]
PRESENTATION = [
    *("experiments.figures", "experiments.report", "experiments.reports*"),
    *("experiments.statistics", "experiments.table"),
]

# Inside a part: who may not import whom, and who is excepted.
FORBIDDEN = [
    # The recipe is the top of training; the flags are its bottom.
    (["training.*"], ["training.recipe"], ["training.__main__"]),
    (["training.*"], ["training.__main__", "training.trained"], ["training.__main__"]),
    (
        [
            "training.settings.flags",
            "training.settings.presets",
            "training.settings.registry",
        ],
        ["training.*"],
        ["training.errors"],
    ),
    # Reports are computed from records. They do not run anything, and nothing that
    # runs needs them.
    (PRESENTATION, EXECUTION, []),
    (
        ["experiments.*"],
        ["experiments.report", "experiments.reports*"],
        ["experiments.report", "experiments.reports*", "experiments.__main__"],
    ),
    (
        [*EXECUTION, "experiments.records", "experiments.study"],
        [*PRESENTATION, "experiments.studies*"],
        [],
    ),
    (["experiments.studies*"], [*PRESENTATION, *EXECUTION], []),
    (["experiments.records"], ["experiments.*"], []),
    (
        ["experiments.study"],
        ["experiments.*"],
        ["experiments.rates", "experiments.records"],
    ),
]


def name_of(path: Path) -> str:
    """A file's name as a module: ``training/data/__init__.py`` is training.data."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(path): path
    for path in [
        ROOT / "train.py",
        *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")),
    ]
}


def imports(path: Path) -> Iterator[str]:
    """Names of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def module_of(name: str) -> str | None:
    """The project's module that an imported name is, or is defined in."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


IMPORTS = {name: list(imports(path)) for name, path in FILES.items()}
MODULES = {
    name: {module for i in imported if (module := module_of(i)) and module != name}
    for name, imported in IMPORTS.items()
}


def matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@pytest.mark.parametrize("name", FILES)
def test_parts_import_in_one_direction(name):
    part = max((part for part in PARTS if is_in(name, part)), key=len)
    inside, outside = PARTS[part]
    for imported in IMPORTS[name]:
        package = imported.partition(".")[0]
        if package in (*PACKAGES, "train"):
            assert any(is_in(imported, allowed) for allowed in {part, *inside}), (
                imported
            )
        elif outside is not None and package not in sys.stdlib_module_names:
            assert package in outside, imported


@pytest.mark.parametrize(("importers", "imported", "excepted"), FORBIDDEN)
def test_modules_import_in_one_direction(importers, imported, excepted):
    found = [
        f"{name} imports {module}"
        for name, modules in MODULES.items()
        if matches(name, importers) and not matches(name, excepted)
        for module in modules
        if matches(module, imported) and not matches(module, excepted)
    ]
    assert not found


def test_every_pattern_matches_a_module():
    patterns = {p for rule in FORBIDDEN for patterns in rule for p in patterns}
    assert not [p for p in patterns if not any(matches(name, [p]) for name in FILES)]
    assert not [part for part in PARTS if part not in FILES]


def test_no_modules_import_each_other():
    # A package's __init__ collects the names of its modules, which may import each
    # other through it.
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    graph = {
        name: modules - packages
        for name, modules in MODULES.items()
        if name not in packages
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "training.settings.config",
            ["jax", "flax", "optax", "tyro", "tensorflow_datasets"],
        ),
        ("train", ["jax", "flax", "optax", "tyro", "tensorflow_datasets"]),
        ("training.errors", ["jax", "numpy"]),
        ("plp_optax", ["flax"]),
        ("models", ["jax", "flax"]),
    ],
)
def test_importing_a_module_does_not_import_others(module, absent):
    """A wrong flag is reported at once, and the library needs JAX and optax alone."""
    code = f"import {module}, sys; print(*({{*{absent}}} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.parametrize("package", ["models", "training"])
def test_what_a_package_exports_is_there(package):
    """Names that are imported when first used are found, and others are not."""
    module = __import__(package)
    for name in getattr(module, "__all__", ["NETWORKS", "create", "Network"]):
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_the_citation_has_the_packages_version():
    from plp_optax import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
