"""Pages, tables and numbers."""

import math

import numpy as np
import pytest

from experiments import page, report, style, tables
from experiments.page import Bullets, Notice, Page, Picture, Section, Table
from tests.reports import make, parse, study_of


class TestPage:
    def test_what_could_be_markup_is_text(self, tmp_path):
        nasty = "a < b & c | *d* `e` <script>x</script>"
        table = Table(nasty, ("x", nasty), [("1", nasty)], note=nasty)
        blocks = [nasty, Bullets(nasty, [nasty]), Notice(nasty), table]
        path = page.write(Page(nasty, [Section(nasty, blocks)]), tmp_path)
        parser = parse(path.with_suffix(".html"))
        assert not any(tag == "script" for tag, *_ in parser.attributes)
        assert parser.text.count(nasty) >= 8
        row = path.read_text(encoding="utf-8").split("\n| 1 |")[1].split("\n")[0]
        assert row.count("|") - row.count(r"\|") == 1

    def test_a_table_must_be_rectangular(self):
        with pytest.raises(ValueError, match="not rectangular"):
            Table("t", ("a", "b"), [("1",)])

    def test_pictures_of_an_earlier_report_go(self, tmp_path):
        picture = Picture("new", style.figure(), "A picture.")
        stale = tmp_path / "figures" / "old.png"
        stale.parent.mkdir()
        stale.write_bytes(b"")
        page.write(Page("t", [Section("s", [picture])]), tmp_path)
        assert [p.name for p in stale.parent.iterdir()] == ["new.png"]

    def test_the_same_report_is_the_same_files(self, tmp_path):
        study = study_of("together")
        records = make(study, models=("vgg19",))
        for name in ("a", "b"):
            report.write(study, records, tmp_path / name)
        a, b = (
            {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
            for name in ("a", "b")
        )
        assert a == b


class TestNumbers:
    def test_spread_is_numpys(self):
        values = np.array([0.1, 0.25, 0.31])
        mean, deviation = tables.spread(values, 6).split(" ± ")
        assert float(mean) == pytest.approx(np.mean(values), abs=1e-6)
        assert float(deviation) == pytest.approx(np.std(values, ddof=1), abs=1e-6)

    @pytest.mark.parametrize("value", [None, math.nan])
    def test_what_is_not_there_is_a_dash(self, value):
        assert tables.number(value) == tables.signed(value) == "-"
        assert tables.spread(np.array([])) == "-"
