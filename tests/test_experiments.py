"""Studies: what they plan, what they run when, and what is kept of it."""

import dataclasses
import json
import re
import types
from itertools import combinations, groupby, pairwise

import jax
import numpy as np
import pytest

import train
from experiments import __main__ as command
from experiments import plan, report, runner, studies
from experiments.records import Record
from experiments.studies.rates import at_rate, stages
from experiments.study import Arm, Scale, Study
from training import feed
from training.config import Config, experiment, resolve
from training.errors import ConfigError, RunError
from training.loop import Loop

TINY = {"width": 4, "epochs": 1, "batch_size": 128, "validation_fraction": 0.2}
NAMES = studies.NAMES


def study_of(*arms, **fields):
    """A study of these arms on a tiny network."""
    scale = Scale(models=("tiny",), seeds=2, fields=TINY)
    fields = {"method": "sgd", **fields}
    return Study(
        "made-up", "title", "question?", None, fields, arms, (), scale, scale, scale
    )


SGD = Arm("sgd", "SGD", {})
PLP = Arm("plp", "PLP", {"method": "plp"})
ALL = Arm(
    "all",
    "all layers",
    {"method": "amplify", "amplify_select": "all", "strategy": "[(3, 0.1, 1, 2.0)]"},
)
RANDOM = Arm(
    "random",
    "random layers",
    {**ALL.fields, "amplify_select": "random", "amplify_ratio": 0.4},
)
DIVERGING = Arm("wild", "wild", {"learning_rate": 1e30, "schedule": "constant"})


def names(folder):
    return {path.name for path in (folder / "records").iterdir()}


# -- What is planned ---------------------------------------------------------------


def test_arms_that_are_compared_follow_each_other():
    late = dataclasses.replace(PLP, name="late", group="sweep")
    study = study_of(SGD, late, PLP)
    scale = Scale(models=("vgg16", "tiny"), seeds=3, fields=TINY)
    order = [
        (t.arm.group, t.config.model, t.config.seed, t.arm.name)
        for t in plan.tasks(study, scale)
    ]
    assert order == [
        *(
            ("", model, seed, arm)
            for model in ("vgg16", "tiny")
            for seed in range(3)
            for arm in ("sgd", "plp")
        ),
        *(
            ("sweep", model, seed, "late")
            for model in ("vgg16", "tiny")
            for seed in range(3)
        ),
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["full", "small", "quick"])
def test_studies_are_sound(name, size):
    study = studies.module(name).STUDY
    assert study.name == name
    scale = getattr(study, size)
    tasks = plan.tasks(study, dataclasses.replace(scale, seeds=2))
    paired = [list(block) for _, block in groupby(tasks, key=lambda task: task.block)]
    # Each block once: nothing that belongs together is torn apart.
    assert len({block[0].block for block in paired}) == len(paired)
    for block in paired:
        # No two arms train alike, and all differ in what the study asks about alone.
        trained = [experiment(task.config) for task in block]
        assert all(a != b for a, b in combinations(trained, 2))
        for field in ("seed", "model", "epochs", "batch_size", "width", "dataset"):
            assert len({config[field] for config in trained}) == 1, field
    arms = {arm.name for arm in study.arms}
    assert len(arms) == len(study.arms)
    assert len({arm.label for arm in study.arms}) == len(arms)
    for comparison in study.comparisons:
        assert {comparison.arm, comparison.control} <= arms
        assert comparison.arm != comparison.control
    files = [task.name for task in tasks]
    assert len(set(files)) == len(files)
    assert all(re.fullmatch(r"[\w.-]+", file) for file in files)


def test_names_differ_where_runs_do():
    study = study_of(SGD, PLP)
    scale = study.full

    def files(**fields):
        changed = dataclasses.replace(scale, fields={**scale.fields, **fields})
        return {task.name for task in plan.tasks(study, changed)}

    assert len(files()) == 4
    assert not files() & files(epochs=2)
    assert not files() & files(width=5)
    # Where the data lie changes nothing; nor does it to ask for fewer seeds.
    cifar = {"dataset": "cifar100"}
    assert files(**cifar, data_dir="here") == files(**cifar, data_dir="there")
    fewer = plan.tasks(study, dataclasses.replace(scale, seeds=1))
    assert {task.name for task in fewer} < files()


def test_records_outlive_fields_that_are_added_later():
    fields = experiment(resolve({"seed": 3, "width": 8}))
    default = dataclasses.asdict(Config())
    kept = [name for name in fields if fields[name] == default[name]]
    assert "accumulate" in kept
    for name in kept:
        earlier = {n: v for n, v in fields.items() if n != name}
        assert plan.fingerprint(earlier) == plan.fingerprint(fields)
    changed = fields | {"accumulate": 2}
    assert plan.fingerprint(changed) != plan.fingerprint(fields)


# -- The controls ------------------------------------------------------------------


def cycle(step, window, period, fit):
    """How far a cycle of literal prediction gets on updates of 1, per step."""
    w = [float(j) for j in range(window + 1)]
    if fit == "least_squares":
        times = np.arange(1, window + 1)
        slope, start = np.polyfit(times, w[1:], 1)
        jumped = start + slope * (window - 0.5 + step)
    else:
        middles = [(a + b) / 2 for a, b in pairwise(w[1:])]
        rise = (middles[-1] - middles[0]) / (window - 2) if window > 2 else w[2] - w[1]
        jumped = middles[-1] + step * rise
    return (jumped + period - window) / period


@pytest.mark.parametrize("name", ["plp", "ablation"])
@pytest.mark.parametrize("size", ["full", "small", "quick"])
def test_every_prediction_has_its_matched_rate(name, size):
    study = studies.module(name).STUDY
    scale = getattr(study, size)
    model = scale.models[0]
    config = {arm.name: plan.configure(study, scale, model, arm) for arm in study.arms}
    looked_at = set()
    for comparison in study.comparisons:
        arm, control = config[comparison.arm], config[comparison.control]
        if comparison.control.startswith("matched"):
            plain = dataclasses.replace(arm, method="sgd")
            factor = cycle(arm.plp_step, arm.plp_window, arm.plp_period, arm.plp_fit)
            assert control.method == "sgd"
            assert control.optimizer == plain.optimizer
            for field in ("learning_rate", "max_learning_rate"):
                rate = getattr(plain, field)
                expected = rate if rate is None else pytest.approx(factor * rate)
                assert getattr(control, field) == expected
            looked_at.add(comparison.arm)
    predicting = {n for n, c in config.items() if c.method == "plp"}
    # At half a step prediction is neutral: plain SGD is its match.
    assert predicting - looked_at == ({"step-0.5"} if name == "ablation" else set())


def test_matched_rate_multiplies_a_strategy():
    study = studies.module("together").STUDY
    for name, plain in (("matched", "sgd"), ("matched-amplify", "amplify")):
        ours, theirs = (
            stages(plan.configure(study, study.quick, "resnet18", study.arm(arm)))
            for arm in (name, plain)
        )
        factor = cycle(1, 3, 4, "midpoint")
        assert [s.learning_rate for s in ours] == pytest.approx(
            [factor * s.learning_rate for s in theirs]
        )
        assert [s[:1] + s[2:] for s in ours] == [s[:1] + s[2:] for s in theirs]


@pytest.mark.parametrize(
    ("model", "ends"),
    [("vgg19", [50, 100, 130, 150]), ("resnet50", [10, 100, 145, 150])],
)
def test_rate_drops_once_more_where_amplification_ends(model, ends):
    study = studies.module("amplification").STUDY
    drop = plan.configure(study, study.full, model, study.arm("drop"))
    assert drop.method == "sgd"
    found = stages(drop)
    assert [stage.end_epoch for stage in found] == ends
    rates = [stage.learning_rate for stage in found]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01 / 2])
    # And in no other respect.
    original = plan.configure(study, study.full, model, study.arm("original"))
    assert [s.learning_rate for s in stages(original)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01]
    )


# -- What is run -------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that has run."""
    folder = tmp_path_factory.mktemp("study")
    study = study_of(SGD, DIVERGING)
    return study, folder, runner.run(study, study.full, folder)


def test_a_finished_run_leaves_one_record(finished):
    study, folder, found = finished
    tasks = plan.tasks(study, study.full)
    assert names(folder) == {f"{task.name}.json" for task in tasks}
    assert {path.name for path in folder.iterdir()} == {"records", "scale.json"}
    assert [(r.model, r.arm, r.seed) for r in found] == [
        ("tiny", arm, seed) for seed in (0, 1) for arm in ("sgd", "wild")
    ]
    assert plan.finished(tasks, folder) == found
    for record, task in zip(found, tasks, strict=True):
        assert {**record.config, "data_dir": None} == experiment(task.config)


def test_where_the_data_lie_is_kept_out_of_what_is_kept(tmp_path):
    study = study_of(SGD)
    fields = {"dataset": "cifar100", "data_dir": "here"}
    scale = dataclasses.replace(study.full, fields=fields)
    (task, *_) = plan.tasks(study, scale)
    assert task.config.data_dir == "here"
    assert "data_dir" not in task.described
    plan.write_scale(scale, tmp_path)
    assert plan.read_scale(tmp_path).fields == {"dataset": "cifar100"}


def test_divergence_is_a_result(finished):
    *_, found = finished
    for record in found:
        assert record.diverged == (record.arm == "wild")
        if record.diverged:
            assert "finite" in record.result["diverged"]
            assert record.history == []
        else:
            assert [m["epoch"] for m in record.history] == [1]
            assert 0 <= record.result["test_accuracy"] <= 1


@pytest.fixture
def started(monkeypatch):
    """Notes which runs are trained, and trains none."""
    seen = []

    def run(program, config, watcher):
        seen.append((config.method, config.seed))
        return {"test_accuracy": 0.5}

    monkeypatch.setattr(train, "prepare", lambda config: None)
    monkeypatch.setattr(train, "run", run)
    return seen


def test_what_is_recorded_is_not_run_again(started, tmp_path):
    study = study_of(SGD, PLP)
    first = runner.run(study, study.full, tmp_path)
    assert started == [("sgd", 0), ("plp", 0), ("sgd", 1), ("plp", 1)]
    assert runner.run(study, study.full, tmp_path) == first
    assert len(started) == 4

    (lost,) = (tmp_path / "records").glob("tiny-plp-0-*.json")
    lost.unlink()
    assert runner.run(study, study.full, tmp_path) == first
    assert started[4:] == [("plp", 0)]

    more = dataclasses.replace(study.full, seeds=3)
    assert len(runner.run(study, more, tmp_path)) == 6
    assert started[5:] == [("sgd", 2), ("plp", 2)]


def test_another_configuration_is_run_anew(started, tmp_path):
    study = study_of(SGD)
    runner.run(study, study.full, tmp_path)
    longer = dataclasses.replace(study.full, fields={**TINY, "epochs": 2})
    found = runner.run(study, longer, tmp_path)
    assert len(started) == 4
    assert [record.config["epochs"] for record in found] == [2, 2]

    # A record that says something else than its name is not believed.
    path = plan.record_path(plan.tasks(study, study.full)[0], tmp_path)
    fields = json.loads(path.read_text())
    fields["config"]["width"] = 99
    path.write_text(json.dumps(fields))
    found = runner.run(study, study.full, tmp_path)
    assert len(started) == 5
    assert found[0].config["width"] == 4


def test_damaged_record_is_named(started, tmp_path):
    study = study_of(SGD)
    runner.run(study, study.full, tmp_path)
    path = plan.record_path(plan.tasks(study, study.full)[1], tmp_path)
    for damaged in ('{"arm": "sgd"', '{"arm": "sgd"}', "[]"):
        path.write_text(damaged)
        with pytest.raises(RunError, match=re.escape(str(path))):
            runner.run(study, study.full, tmp_path)


def test_programs_are_compiled_once_for_all_seeds(started, monkeypatch, tmp_path):
    prepared = []
    monkeypatch.setattr(
        train,
        "prepare",
        lambda config: prepared.append((config.amplify_select, config.seed)),
    )
    study = study_of(SGD, ALL, RANDOM)
    scale = dataclasses.replace(study.full, seeds=3)
    runner.run(study, scale, tmp_path)
    assert len(started) == 9
    # Random layers are drawn by the seed inside the compiled step.
    assert sorted(map(str, prepared)) == sorted(
        map(str, [(None, 0), ("all", 0), *(("random", seed) for seed in range(3))])
    )


class Clock:
    """Time that passes only when something is done."""

    def __init__(self, monkeypatch, *, compilation, calls, call):
        self.now = 0.0
        self.finished = []

        def prepare(config):
            self.now += compilation

        def run(program, config, watcher):
            for _ in range(calls):
                self.now += call
                watcher.after_call(None)
            self.finished.append((config.method, config.seed))
            return {"test_accuracy": 0.5}

        monkeypatch.setattr(train, "prepare", prepare)
        monkeypatch.setattr(train, "run", run)
        fake = types.SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(runner, "time", fake)


FIRST, SECOND = [("sgd", 0), ("plp", 0)], [("sgd", 1), ("plp", 1)]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        # Two compilations of 10 s, runs of 20 s: seed 0 takes 60 s, seed 1 40 s.
        (25, []),
        (55, FIRST[:1]),
        (61, FIRST),
        (99, FIRST),  # a pair is not begun that would be torn apart
        (101, FIRST + SECOND),
    ],
)
def test_nothing_goes_beyond_the_budget(
    monkeypatch, tmp_path, capsys, seconds, expected
):
    clock = Clock(monkeypatch, compilation=10, calls=10, call=2)
    study = study_of(SGD, PLP)
    found = runner.run(study, study.full, tmp_path, budget_minutes=seconds / 60)
    assert clock.finished == expected
    assert [(r.config["method"], r.seed) for r in found] == expected
    assert clock.now <= seconds + 2  # a call of the training function
    assert len(capsys.readouterr().out.splitlines()) == len(expected)


def test_every_call_gets_on(monkeypatch, tmp_path):
    # Though no pair fits into the budget.
    clock = Clock(monkeypatch, compilation=10, calls=10, call=2)
    study = study_of(SGD, PLP)
    for _ in range(4):
        runner.run(study, study.full, tmp_path, budget_minutes=35 / 60)
    assert clock.finished == FIRST + SECOND


def test_every_call_gets_on_though_watched_runs_begin_anew(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, compilation=10, calls=10, call=2)
    study = study_of(SGD, PLP)

    class Watching(train.Watcher):
        measures = {}

    for done in range(1, 5):
        runner.run(
            study,
            study.full,
            tmp_path,
            make_watcher=lambda program, config: Watching(),
            budget_minutes=15 / 60,  # less than any run takes
        )
        assert clock.finished == (FIRST + SECOND)[:done]


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_budget_must_be_positive(tmp_path, budget):
    study = study_of(SGD)
    with pytest.raises(ConfigError, match="--budget-minutes"):
        runner.run(study, study.full, tmp_path, budget_minutes=budget)


def test_arms_start_alike(monkeypatch, tmp_path):
    """One seed gives all arms the same parameters and the same order of examples."""
    starts, orders = [], []
    start, calls = Loop.start, feed.Resident.calls

    def spying_start(self, seed, *arguments):
        start(self, seed, *arguments)
        starts.append((seed, jax.device_get(self.state.params)))

    def spying_calls(self, seed, epoch, *arguments):
        for call in calls(self, seed, epoch, *arguments):
            (_, order), _ = call.arguments
            orders.append((seed, epoch, tuple(np.asarray(order))))
            yield call

    monkeypatch.setattr(Loop, "start", spying_start)
    monkeypatch.setattr(feed.Resident, "calls", spying_calls)
    study = study_of(SGD, PLP, dataclasses.replace(ALL, derived=at_rate(3)))
    scale = dataclasses.replace(study.full, fields={**TINY, "epochs": 3})
    runner.run(study, scale, tmp_path)

    first = {}
    assert {seed for seed, _ in starts} == {0, 1}
    for seed, params in starts:
        jax.tree.map(
            np.testing.assert_array_equal, params, first.setdefault(seed, params)
        )
    assert not np.array_equal(first[0]["head"]["kernel"], first[1]["head"]["kernel"])
    # One order for each seed and epoch, whatever the arm.
    assert len(set(orders)) == len({order[:2] for order in orders}) == 6


class Counting(train.Watcher):
    def __init__(self):
        self.measures = {"epochs": 0, "calls": 0}

    def after_call(self, loop):
        self.measures["calls"] += 1

    def after_epoch(self, loop, metrics):
        self.measures["epochs"] += 1


def test_measures_join_the_record(tmp_path, capsys):
    study = study_of(PLP)
    scale = dataclasses.replace(study.full, seeds=2)

    def make_watcher(program, config):
        return Counting() if config.seed == 1 else None

    plain, watched = runner.run(study, scale, tmp_path, make_watcher=make_watcher)
    assert plain.measures == {}
    assert watched.measures == {
        "epochs": 1,
        "calls": watched.history[-1]["step"],
    }
    # A line a run, and nothing of what training prints.
    lines = capsys.readouterr().out.splitlines()
    assert [line[:20] for line in lines] == [
        "1/2 tiny plp seed 0:",
        "2/2 tiny plp seed 1:",
    ]


def test_paths_are_those_of_the_parameters(tmp_path):
    module = studies.module("plp")
    fields = {**TINY, "model": "tiny", "method": "plp", "cache_dir": "none"}
    config = resolve({**fields, "seed": 0, "workdir": str(tmp_path / "run")})
    program = train.prepare(config)
    watcher = module.watcher(program, config)
    seen = []

    class Both(train.Watcher):
        def after_call(self, loop):
            watcher.after_call(loop)
            seen.append(jax.device_get((loop.state.params, loop.state.step)))

    train.run(program, config, Both())
    path = watcher.measures["path"]
    assert path["step"] == [int(step) for _, step in seen] != []
    for kind in ("weight", "bias"):
        place, index = path["which"][kind].rstrip("]").split("[")
        for value, (params, _) in zip(path[kind], seen, strict=True):
            for name in place.split("/"):
                params = params[name]
            assert value == params[tuple(map(int, index.split(",")))]
        assert len(set(path[kind])) > len(seen) / 2
    json.dumps(watcher.measures)
    for other in ({"seed": 1}, {"method": "lookahead"}):
        assert module.watcher(program, resolve(fields | other)) is None


# -- The command -------------------------------------------------------------------


@pytest.fixture
def reports(monkeypatch):
    """Notes what reports are written of, and writes none."""
    seen = []

    def write(study, records, folder):
        seen.append((study.name, [(r.arm, r.seed) for r in records], folder))
        return folder / "report.md"

    monkeypatch.setattr(report, "write", write)
    return seen


QUICK = ["ablation", "--quick", "--arms", "sgd", "plp", "--seeds", "1"]


def test_run_then_report(started, reports, tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert command.main(["run", *QUICK, "--epochs", "2", *out]) == 0
    expected = ("ablation", [("sgd", 0), ("plp", 0)], tmp_path / "ablation")
    assert reports == [expected]
    (record, _) = (
        Record.read(p) for p in (tmp_path / "ablation" / "records").iterdir()
    )
    assert (record.config["epochs"], record.config["width"]) == (2, 8)
    assert str(tmp_path / "ablation" / "report.md") in capsys.readouterr().out

    # The report is of the scale that was last run.
    assert command.main(["report", "ablation", *out]) == 0
    assert reports == [expected, expected]
    assert command.main(["run", *QUICK, "--epochs", "3", *out]) == 0
    assert command.main(["report", "ablation", *out]) == 0
    assert reports[2:] == [expected, expected]
    assert len(names(tmp_path / "ablation")) == 4


def test_end_of_the_budget_is_told(monkeypatch, reports, tmp_path, capsys):
    Clock(monkeypatch, compilation=10, calls=10, call=2)
    argv = ["run", *QUICK, "--budget-minutes", "0.6", "--out", str(tmp_path)]
    assert command.main(argv) == 0
    assert "1 of 2 runs done" in capsys.readouterr().out
    assert reports == [("ablation", [("sgd", 0)], tmp_path / "ablation")]


def test_interruption_keeps_what_has_finished(monkeypatch, tmp_path, capsys):
    def run(program, config, watcher):
        if config.method == "plp":
            raise KeyboardInterrupt
        return {"test_accuracy": 0.5}

    monkeypatch.setattr(train, "prepare", lambda config: None)
    monkeypatch.setattr(train, "run", run)
    argv = ["run", *QUICK, "--out", str(tmp_path)]
    assert command.main(argv) == 130
    assert "stopped" in capsys.readouterr().err
    assert [name[:10] for name in names(tmp_path / "ablation")] == ["tiny-sgd-0"]


def test_list_names_every_study(capsys):
    assert command.main(["list"]) == 0
    listed = capsys.readouterr().out
    for name in studies.NAMES:
        assert all(
            f"run {name}{flag}:" in listed for flag in ("", " --small", " --quick")
        )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "plq"], "no study 'plq'"),
        (["report", "plq"], "no study 'plq'"),
        (["report", "plp"], "run it first"),
        (["run", "plp", "--models", "resnet19"], "resnet19"),
        (["run", "plp", "--arms", "sgd", "adam"], "adam"),
        (["run", "plp", "--seeds", "0"], "--seeds"),
        (["run", "plp", "--width", "0"], "--width"),
        (["run", "plp", "--epochs", "-3"], "--epochs"),
        (["run", "plp", "--dataset", "mnist"], "mnist"),
        (["run", "plp", "--precision", "float8"], "float8"),
        (["run", "plp", "--budget-minutes", "-1"], "--budget-minutes"),
        (["run", "amplification", "--epochs", "2"], "--strategy"),
    ],
)
def test_mistakes_end_in_a_sentence(started, tmp_path, capsys, arguments, told):
    assert command.main([*arguments, "--out", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
    assert started == []
    assert not list(tmp_path.rglob("*.json"))


def test_folder_that_cannot_be_written_ends_in_a_sentence(started, tmp_path, capsys):
    (tmp_path / "file").touch()
    argv = ["run", *QUICK, "--out", str(tmp_path / "file")]
    assert command.main(argv) == 2
    assert "--out" in capsys.readouterr().err
    assert started == []
