"""Which module may import which."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a package may import: of the project beside itself, and from outside (None: all).
# The longest entry that a module's name begins with counts.
ALLOWED = {
    "plp_optax": ("", "jax numpy optax"),
    "plp_optax.linen": ("plp_optax", "flax jax"),
    "plp_optax.nnx": ("plp_optax", "flax jax"),
    "models": ("", "flax jax numpy"),
    "training.errors": ("", ""),
    "training.layout": ("", ""),
    "training.data": ("training.errors", None),
    "training.settings": (
        "plp_optax models training.data.registry training.errors training.weights",
        "",
    ),
    "training.settings.flags": ("training.errors", "tyro"),
    "training.settings.lazy": ("plp_optax", "jax optax"),
    "training.weights": ("models training.errors training.layout", None),
    "training.engine": (
        "plp_optax models training.data training.errors training.settings",
        None,
    ),
    "training.run": (
        "plp_optax training.data training.engine training.errors training.layout "
        "training.settings",
        None,
    ),
    "training": ("plp_optax models", None),
    "train": ("training", None),
    "benchmarks": ("plp_optax models training", None),
    "experiments": ("plp_optax models training", None),
    "experiments.records": ("training.errors", None),
}
# A rule inside a package: reports are computed from records, and run nothing.
RUNNING = "experiments.runner experiments.trainer training.recipe"


def is_in(name, packages):
    return any(name == p or name.startswith(f"{p}.") for p in packages.split())


def imports(path):
    """Names of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


PACKAGES = {name.partition(".")[0] for name in ALLOWED}
IMPORTS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): list(imports(path))
    for package in PACKAGES
    for path in [*ROOT.glob(f"{package}.py"), *(ROOT / package).rglob("*.py")]
}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_in_one_direction(package):
    inside, outside = ALLOWED[package]
    modules = [
        name
        for name in IMPORTS
        if max((p for p in ALLOWED if is_in(name, p)), key=len) == package
    ]
    assert modules
    wrong = [
        f"{name} imports {imported}"
        for name in modules
        for imported in IMPORTS[name]
        if not is_in(imported, f"{package} {inside}")
        and (
            imported.partition(".")[0] in PACKAGES
            or (outside is not None and not is_in(imported, outside))
        )
        and imported.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong


def test_reports_run_nothing():
    modules = [name for name in IMPORTS if is_in(name, "experiments.reports")]
    assert len(modules) > 3
    assert not [m for m in modules if any(is_in(i, RUNNING) for i in IMPORTS[m])]


def test_no_modules_import_each_other():
    def module(imported):
        """The module that an imported name is, or is defined in."""
        while imported and imported not in IMPORTS:
            imported = imported.rpartition(".")[0]
        return imported

    # A package's __init__ is left out: it collects the names of its modules.
    graph = {name: {module(i) for i in IMPORTS[name]} - {name} for name in IMPORTS}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


HEAVY = ["jax", "flax", "optax", "sklearn", "requests", "tyro", "tensorflow_datasets"]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import plp_optax", ["flax"]),
        ("import models", ["jax", "flax"]),
        ("import training.errors", [*HEAVY, "numpy"]),
        ("import training.data", HEAVY),
        # A wrong flag is reported at once. (The command line itself needs tyro.)
        ("import train; train.main(['--epochs', '0'])", HEAVY[:5]),
    ],
)
def test_importing_a_module_does_not_import_others(code, absent):
    code = f"{code}; import sys; print(*({{*{absent}}} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


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
