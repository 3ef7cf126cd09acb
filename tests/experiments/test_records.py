"""Records: one append-only file, exact, and what is damaged in it is noticed."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.records import Header, Record, RecordFile
from training.errors import RunError

HEADER = Header("plp", "quick", ["tiny"], {"width": 4})


def record(seed=0, arm="sgd", **fields):
    fields = {"config": {"width": 4}, "result": {"test_accuracy": 0.1 + 0.2}, **fields}
    return Record(arm, "tiny", seed, **{"seconds": 1.5, **fields})


@pytest.fixture
def file(tmp_path):
    """Two records in a file."""
    file = RecordFile(tmp_path / "study")
    file.append(HEADER, record(0))
    file.append(HEADER, record(1))
    return file


floats = st.floats(allow_nan=False)
values = st.none() | floats | st.integers() | st.text()
tables = st.lists(st.dictionaries(st.sampled_from("abc"), values), max_size=4)


@settings(max_examples=50, deadline=None)
@given(tables, st.dictionaries(st.text(), floats), tables)
def test_what_is_written_is_what_is_read(rows, result, analysis):
    history = [{"epoch": i, **row} for i, row in enumerate(rows)]
    if history and analysis:
        history[-1]["analysis"] = [{"layer": i, **r} for i, r in enumerate(analysis)]
    line = record(history=history, result=result).to_line()
    assert "\n" not in line
    found = Record.from_line(line)

    def without_nulls(rows):
        return [{n: v for n, v in row.items() if v is not None} for row in rows]

    expected = without_nulls(history)
    for row in expected:
        if "analysis" in row:
            row["analysis"] = without_nulls(row["analysis"])
    for ours, theirs in ((found.history, expected), (found.result, result)):
        # As text, which distinguishes -0.0 from 0.0 and 1 from 1.0.
        assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def test_there_are_no_null_fields_and_no_defaults():
    full = record(measures={"path": {"a": None, "b": [1]}}, result={"x": None, "y": 1})
    fields = json.loads(full.to_line())
    assert fields["measures"] == {"path": {"b": [1]}}
    assert fields["result"] == {"y": 1}
    old = Record("sgd", "tiny", 0, {"width": 4}, {"y": 1})
    assert set(json.loads(old.to_line())) == {
        "arm",
        "model",
        "seed",
        "config",
        "result",
    }
    assert math.isnan(Record.from_line(old.to_line()).seconds)


def test_of_records_of_the_same_run_the_last_counts(file):
    again = record(0, result={"test_accuracy": 0.9})
    file.append(HEADER, again)
    found = [(r.seed, r.result["test_accuracy"]) for r in file.read()]
    assert found == [(0, 0.9), (1, 0.1 + 0.2)]


@pytest.mark.parametrize("left", [1, 10, 60])
def test_a_torn_last_line_is_dropped_with_a_sentence(file, capsys, left):
    content = file.path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    file.path.write_bytes(content[: start + left])  # killed while writing
    assert file.read() == [record(0)]
    error = capsys.readouterr().err
    assert "line 3 is incomplete" in error
    assert len(error.splitlines()) == 1
    file.append(HEADER, record(1))
    assert file.path.read_bytes() == content
    assert file.read() == [record(0), record(1)]
    assert capsys.readouterr().err == ""


def test_a_torn_header_is_written_again(file):
    content = file.path.read_bytes()
    file.path.write_bytes(content[:20])
    with pytest.raises(RunError, match="empty"):
        file.read()
    for seed in range(2):
        file.append(HEADER, record(seed))
    assert file.path.read_bytes() == content


@pytest.mark.parametrize(
    "damaged",
    ['{"arm":"sgd"', '{"arm":"sgd"}', "[]", "3", "", '{"arm":"sgd","seed":1}'],
)
@pytest.mark.parametrize("line", [1, 2])
def test_a_damaged_line_is_named(file, damaged, line):
    lines = file.path.read_text().splitlines()
    lines[line] = damaged
    file.path.write_text("".join(f"{text}\n" for text in lines))
    message = f"line {line + 1} of {re.escape(str(file.path))} is damaged"
    with pytest.raises(RunError, match=message):
        file.read()


def test_bytes_that_are_not_text_are_named(file):
    with file.path.open("ab") as stream:
        stream.write(b"\xff\xfe\n")
    with pytest.raises(RunError, match=re.escape(str(file.path))):
        file.read()


def test_what_another_process_adds_meanwhile_is_kept(file, monkeypatch):
    opened = Path.open

    class Stream:
        """The file, to which another process appends once it has been read."""

        def __init__(self, stream):
            self._stream = stream

        def __getattr__(self, name):
            return getattr(self._stream, name)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self._stream.close()

        def read(self):
            content = self._stream.read()
            with opened(file.path, "ab") as other:
                other.write(f"{record(2).to_line()}\n".encode())
            return content

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *arguments: Stream(opened(*arguments)))
        file.append(HEADER, record(3))
    assert [r.seed for r in file.read()] == [0, 1, 2, 3]


def test_scales_do_not_mix(file):
    content = file.path.read_bytes()
    other = Header("plp", "quick", ["tiny"], {"width": 8})
    with pytest.raises(RunError, match=r'"width": 4.*there.*"width": 8.*here.*--out'):
        file.append(other, record(2))
    assert file.path.read_bytes() == content


def test_the_order_of_fields_does_not_matter(tmp_path):
    file = RecordFile(tmp_path)
    for fields in ({"width": 8, "epochs": 2}, {"epochs": 2, "width": 8}):
        file.append(Header("plp", "quick", ["tiny"], fields))
    assert file.read() == []


def test_a_folder_that_cannot_be_written_ends_in_a_sentence(tmp_path):
    (tmp_path / "study").touch()
    with pytest.raises(RunError, match="--out"):
        RecordFile(tmp_path / "study").append(HEADER, record(0))
