"""The parts of a set by the names that are usual for them."""

from collections.abc import Iterable, Mapping

_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}


def roles(names: Iterable[str]) -> dict[str, str]:
    """Which of some names is the training, the validation and the test part.

    Where there is no test part, the validation part is the test part, as in ImageNet:
    a part that chose the best epoch would be no test.

    Args:
      names: Names of folders or splits, in small or capital letters.

    Returns:
      The names by "train", "validation" and "test", as far as there are.
    """
    found = {
        role: name
        for role, usual in _NAMES.items()
        for name in names
        if name.lower() in usual
    }
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return found


def notes(found: Mapping[str, str]) -> tuple[str, ...]:
    """Notes for the user on :func:`roles`."""
    name = found.get("test")
    if name is None or name.lower() in _NAMES["test"]:
        return ()
    return (
        f"{name} is the test part, since there is no test; the validation part is "
        "split off train",
    )
