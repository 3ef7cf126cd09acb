"""What README and site promise: links that exist, intervals that have a record."""

import inspect
import json
import re
import runpy
from pathlib import Path

import pytest

import plp_optax
from tests.support.factories import CASES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RECORDS = ROOT / "benchmarks" / "records"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "methods").glob("*.md"))]


def test_readme_is_short_and_its_links_exist():
    by_hand = re.sub(
        r"<!-- evidence: begin.*evidence: end -->", "", README, flags=re.DOTALL
    )
    assert len(by_hand.splitlines()) <= 100
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def rounds_to(measured, claimed):
    """Whether one of the measured intervals is the claimed one, or its negative."""
    digits = len(claimed[0].partition(".")[2])
    low, high = map(float, claimed)
    tolerance = 0.5 * 10**-digits + 1e-9
    return any(
        max(abs(x - low), abs(y - high)) <= tolerance
        for a, b in measured
        for x, y in ((a, b), (-b, -a))
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_interval_is_in_a_record_that_the_page_names(page):
    text = page.read_text()
    places = re.findall(r"(?:\.\./studies|results)/(\S+?)/report", text)
    reports = {ROOT / "results" / place / "report.md" for place in places}
    found = [pair for r in reports if r.exists() for pair in intervals(r.read_text())]
    if re.search(r"step_overhead-cpu.json|#an-optimizer-step|plp.md#cost", text):
        arms = json.loads((RECORDS / "step_overhead-cpu.json").read_text())["arms"]
        ratios = [arm["time_ratio"] for arm in arms.values()]
        found += [(ratio["low"], ratio["high"]) for ratio in ratios]
    measured = [tuple(map(float, pair)) for pair in found]
    missing = [c for c in intervals(text) if not rounds_to(measured, c)]
    assert not missing


def intervals(text):
    pairs = re.findall(r"\[([+-]?[\d.]+),\s([+-]?[\d.]+)\]", text)
    return [pair for pair in pairs if float(pair[0]) <= float(pair[1])]


def test_every_public_transformation_is_under_contract():
    """Of ``test_contract.py``."""
    factories = {
        function
        for name in plp_optax.__all__
        if inspect.isfunction(function := getattr(plp_optax, name))
        and "GradientTransformation" in str(function.__annotations__["return"])
    }
    assert len(factories) >= 10
    assert factories == {case.factory for case in CASES.values()}


REPORTS = sorted((ROOT / "results").glob("*/*/report.md"))


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.parent.name)
def test_the_page_of_a_study_has_all_of_its_report(report):
    write = runpy.run_path(str(ROOT / "docs" / "study_pages.py"))["page"]
    text = report.read_text().strip()
    page = write(text, "/".join(report.parts[-3:-1]))
    blocks = [block for block in text.split("\n\n") if not block.startswith("#")]
    assert [b for b in blocks if text.count(b) != page.count(b)] == []
    assert page.count("<details>") == page.count("</details>") > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["average", "own_study"])
def test_tutorials_run(name, tmp_path, monkeypatch):
    """Their cells, in a folder of their own, as the site's build runs them."""
    text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text()
    cells = re.findall(r"^```\{code-cell\}.*?\n(.*?)^```$", text, re.M | re.S)
    options = re.compile(r"\A(---\n.*?\n---\n|(:[^\n]*\n)+)", re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for cell in cells:
        exec(options.sub("", cell), names)
    if name == "average":
        assert names["longer"].test.accuracy > 0.9
    else:
        verdicts = names["found"]["verdict"].to_list()
        assert verdicts == ["better", "no difference shown"]
