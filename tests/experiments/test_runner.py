"""Studies as run: in which order, for how long, and what is recorded."""

import types

import pytest

from experiments import runner
from experiments.records import RecordFile
from experiments.study import Arm, Outcome, Scale, Study
from training.errors import ConfigError, DivergedError

SCALE = Scale("small", models=("stream",), seeds=2, fields={})
ARMS = (Arm("sgd", "SGD", {"method": "sgd"}), Arm("plp", "PLP", {"method": "plp"}))


class World:
    """A study whose runs take time on a clock that runs only with them.

    Attributes:
      now: The time in seconds.
      finished: Method and seed of each finished run.
    """

    def __init__(self, monkeypatch, folder, *, ticks=10, tick=2.0):
        self.now = 0.0
        self.finished = []
        self.folder = folder
        self._ticks, self._tick = ticks, tick
        clock = types.SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(runner, "time", clock)
        self.study = Study(
            "streams", "title", "?", arms=ARMS, scales=(SCALE,), execute=self.execute
        )

    def execute(self, config, tick):
        for i in range(self._ticks):
            self.now += self._tick
            tick(
                (i + 1) / self._ticks, f"epoch {i + 1}/{self._ticks}, loss {i / 4:.3g}"
            )
        self.finished.append((config["method"], config["seed"]))
        return Outcome({"error": 0.25}, [{"epoch": 1}], {"seen": 3})

    def run(self, scale=SCALE, **options):
        return runner.run(self.study, scale, self.folder, **options)

    @property
    def records(self):
        return RecordFile(self.folder).read()


@pytest.fixture
def world(monkeypatch, tmp_path):
    return World(monkeypatch, tmp_path / "streams")


FIRST, SECOND = [("sgd", 0), ("plp", 0)], [("sgd", 1), ("plp", 1)]


def test_runs_are_recorded(world):
    assert world.run() == 0
    assert world.finished == FIRST + SECOND
    assert [path.name for path in world.folder.iterdir()] == ["records.jsonl"]
    for record, (method, seed) in zip(world.records, FIRST + SECOND, strict=True):
        assert (record.arm, record.model, record.seed) == (method, "stream", seed)
        assert record.config["method"] == method
        assert record.result == {"error": 0.25}
        assert record.history == [{"epoch": 1}]
        assert record.measures == {"seen": 3}
        assert record.seconds == 20.0


def test_what_is_recorded_is_not_run_again(world, capsys):
    world.run()
    before = world.records
    world.run()
    assert world.records == before
    assert len(world.finished) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0 of 4 runs recorded already"
    assert lines[-1] == "4 of 4 runs recorded already"

    path = RecordFile(world.folder).path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for i, line in enumerate(lines) if i != 2))
    world.run()
    assert world.finished[4:] == [("plp", 0)]

    world.run(SCALE.changed(seeds=3, fields={}))
    assert world.finished[5:] == [("sgd", 2), ("plp", 2)]


def test_divergence_is_a_result(world):
    def diverge(config, tick):
        raise DivergedError("the loss is not finite")

    world.study = Study("streams", "?", "?", arms=ARMS[:1], scales=(), execute=diverge)
    assert world.run() == 0
    assert [r.result for r in world.records] == [
        {"diverged": "the loss is not finite"}
    ] * 2
    assert all(record.diverged for record in world.records)


# -- The budget ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected", "now"),
    [
        # Runs take 20 s in steps of 2 s.
        (1, [], 2),  # holds for the first run, too
        (15, [], 16),
        (19, FIRST[:1], 20),  # it has done all its work
        (25, FIRST[:1], 26),
        (40, FIRST, 40),
        (77, FIRST + SECOND[:1], 78),
        (81, FIRST + SECOND, 80),
    ],
)
def test_nothing_exceeds_the_budget(world, capsys, seconds, expected, now):
    missing = world.run(budget_minutes=seconds / 60)
    assert world.finished == expected
    assert missing == 4 - len(expected)
    assert world.now == now
    out = capsys.readouterr().out
    assert (f"{len(expected)} of 4 runs are recorded" in out) == (missing > 0)
    assert ("the budget ended within a run: stream " in out) == bool(now % 20)
    if not expected:
        assert "stream sgd seed 0 has to start again" in out


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_budget_must_be_positive(world, budget):
    with pytest.raises(ConfigError, match="--budget-minutes"):
        world.run(budget_minutes=budget)
    assert not world.folder.exists()


# -- Display ---------------------------------------------------------------------------


def test_piped_output_has_a_line_a_minute_and_a_line_a_run(
    monkeypatch, tmp_path, capsys
):
    world = World(monkeypatch, tmp_path, ticks=8, tick=20.0)
    world.run(SCALE.changed(arms=["plp"], seeds=1, fields={}))
    assert capsys.readouterr().out.splitlines() == [
        "0 of 1 runs recorded already",
        # A third of the way is 3 of 8 ticks: 60 s of 160.
        "stream plp seed 0: epoch 3/8, loss 0.5, 2 min left",
        "stream plp seed 0: epoch 6/8, loss 1.25, 40 s left",
        "1/1 stream plp seed 0: finished, 3 min",
    ]


def test_finished_runs_say_what_remains(world, capsys):
    world.run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "1/4 stream sgd seed 0: finished, 20 s, all: about 60 s left",
        "2/4 stream plp seed 0: finished, 20 s, all: about 40 s left",
        "3/4 stream sgd seed 1: finished, 20 s, all: about 20 s left",
        "4/4 stream plp seed 1: finished, 20 s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (59, "59 s"), (130, "2 min"), (9000, "2.5 h")],
)
def test_durations_have_the_unit_that_suits_them(seconds, text):
    assert runner.describe_seconds(seconds) == text
