"""The table of evidence: what it says is in the records, and the README has it."""

from pathlib import Path

import polars as pl
import pytest

from experiments import evidence
from training.errors import UserError

ROOT = Path(__file__).parents[2]


def test_pages_have_the_tables_of_the_records(tmp_path):
    pages = ["README.md", "docs/methods/index.md"]
    (tmp_path / "results").symlink_to(ROOT / "results")
    (tmp_path / "docs/methods").mkdir(parents=True)
    for page in pages:
        text = (ROOT / page).read_text()
        head, rest = text.split(evidence.BEGIN)
        tail = rest.split(evidence.END)[1]
        (tmp_path / page).write_text(f"{head}{evidence.BEGIN}{evidence.END}{tail}")
    evidence.update_pages(tmp_path)
    for page in pages:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text()
    for card, _ in evidence._METHODS.values():
        assert (ROOT / "docs/methods" / f"{card}.md").exists()


def test_evidence_is_judged_by_the_strongest_control_and_sorted(monkeypatch):
    def row(arm, control, mean, verdict):
        return {"metric": "loss", "model": "m", "arm": arm, "control": control, "n": 9,
                "mean": mean, "low": mean - 1, "high": mean + 1, "spread": 0.5,
                "against": control.upper(), "verdict": verdict}  # fmt: skip

    found = pl.DataFrame(
        [
            row("a", "base", -3.0, "better"),
            row("a", "matched", 0.5, "no difference shown"),
            row("b", "base", -2.0, "better"),
            row("b", "matched", -1.0, "better"),
            row("c", "base", 4.0, "worse"),
        ]
    )
    loss = evidence.Metric("loss", "loss", "nats", 4, pl.col("loss"))
    monkeypatch.setattr(
        evidence, "_study", lambda folder: evidence._Study([loss], found)
    )
    claims = [
        evidence.Claim(arm, "r", "m", arm, "base", matched, "loss", "t")
        for arm, matched in (("c", None), ("a", "matched"), ("b", "matched"))
    ]
    frame = evidence.collect(Path(), claims)
    assert frame["method"].to_list() == ["b", "a", "c"]
    assert frame["mean"].to_list() == [-1.0, 0.5, 4.0]
    assert frame["effect"].to_list() == [-2.0, 1.0, 8.0]
    assert frame["difference"].to_list()[0] == "-1.000 nats"
    assert frame["against"].to_list() == ["MATCHED", "MATCHED", "BASE"]
    assert frame["matched"].to_list() == [
        "**-1.000 nats [-2.000, +0.000]** from MATCHED",
        "+0.500 nats [-0.500, +1.500] from MATCHED",
        None,
    ]
    with pytest.raises(KeyError):
        evidence.collect(Path(), [claims[0]._replace(base="none")])
    # One seed, or equal differences: nothing can be said.
    none = pl.lit(None, pl.Float64)
    alone = found.with_columns(low=none, high=none)
    monkeypatch.setattr(
        evidence, "_study", lambda folder: evidence._Study([loss], alone)
    )
    with pytest.raises(UserError, match="on c in r has no interval"):
        evidence.collect(Path(), claims)
