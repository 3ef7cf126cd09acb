"""What README and site promise: links that exist, intervals that have a record."""

import inspect
import re
from pathlib import Path

import plp_optax
from tests.factories import CASES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
INTERVAL = re.compile(r"\[([+-]?[\d.]+), ([+-]?[\d.]+)\]")


def test_readme_is_short_and_its_links_exist():
    assert len(README.splitlines()) <= 120
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_every_interval_of_the_readme_is_in_the_report_that_it_names():
    rows = [line.split("|") for line in README.splitlines() if line.startswith("| [")]
    record, checked = "", 0
    for *_, claim, named, _ in rows:
        if match := re.search(r"`(results/.+)`", named):
            record = match[1]
        if not (intervals := INTERVAL.findall(claim)):
            continue
        report = (ROOT / record / "report.md").read_text()
        measured = [tuple(map(float, pair)) for pair in INTERVAL.findall(report)]
        for interval in intervals:
            digits = len(interval[0].partition(".")[2])
            claimed = tuple(map(float, interval))
            # Half a digit, and the rounding of the report itself.
            tolerance = 0.5 * 10**-digits + 1e-9
            assert any(
                abs(low - claimed[0]) <= tolerance
                and abs(high - claimed[1]) <= tolerance
                for low, high in measured
            ), f"{interval} is not in the report of {record}"
            checked += 1
    assert checked >= 9


def test_every_public_transformation_is_under_contract():
    """In ``test_contract.py``; that of ``ekf``, which takes Jacobians, is apart."""
    factories = {
        function
        for name in plp_optax.__all__
        if inspect.isfunction(function := getattr(plp_optax, name))
        and "GradientTransformation" in str(function.__annotations__["return"])
    }
    assert len(factories) >= 10
    assert factories == {case.factory for case in CASES.values()} | {plp_optax.ekf}
