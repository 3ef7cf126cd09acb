"""Who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = {"plp_optax", "models", "training", "train", "experiments", "benchmarks"}

# For each room the project's rooms and the outside packages it may import; None
# stands for any outside package.
RULES = {
    "plp_optax/linen.py": (set(), {"flax", "jax"}),
    "plp_optax": (set(), {"jax", "numpy", "optax"}),
    "models": (set(), {"flax", "jax", "numpy"}),
    "training/data": ({"training.errors"}, None),
    "training": ({"plp_optax", "models"}, None),
    "train.py": ({"training"}, None),
    "benchmarks": ({"plp_optax", "models", "training"}, None),
    "experiments": ({"plp_optax", "models", "training", "train"}, None),
}


def room_of(path):
    relative = path.relative_to(ROOT).as_posix()
    rooms = [r for r in RULES if relative == r or relative.startswith(f"{r}/")]
    return max(rooms, key=len)


def imports(path):
    """Absolute names of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


FILES = sorted(
    path
    for room in RULES
    for path in ([ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"))
    if path.exists() and "records" not in path.parts
)


@pytest.mark.parametrize(
    "path", sorted(set(FILES)), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_imports_go_one_way(path):
    import sys

    room = room_of(path)
    inside, outside = RULES[room]
    own = room.removesuffix(".py").replace("/", ".")
    for name in imports(path):
        package = name.split(".")[0]
        if package in PROJECT:
            allowed = {own, *inside}
            assert any(name == a or name.startswith(f"{a}.") for a in allowed), name
        elif outside is not None and package not in sys.stdlib_module_names:
            assert package in outside, name


def test_every_room_of_the_library_was_looked_at():
    assert {room_of(path) for path in FILES} >= {"plp_optax"}
