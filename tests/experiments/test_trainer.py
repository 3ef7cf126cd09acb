"""Studies that use the training recipe: what they train, share and observe."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import runner, trainer
from experiments.records import RecordFile
from experiments.study import Arm, Scale, Study
from training import recipe
from training.engine import feed
from training.engine.engine import Engine
from training.run.callbacks import Callback
from training.settings import config as config_lib
from training.settings.plan import Plan

FIELDS = {"width": 2, "epochs": 2, "batch_size": 256}
STEPS_PER_EPOCH = 1438 * 4 // 5 // 256
SCALE = Scale("small", models=("tiny",), seeds=2, fields=FIELDS)
SGD = Arm("sgd", "SGD", {})
PLP = Arm("plp", "PLP", {"method": "plp"}, baseline="sgd")
ALL = Arm("all", "all layers", {"method": "amplify", "amplify_select": "all"})
RANDOM = Arm(
    "random", "?", {**ALL.fields, "amplify_select": "random", "amplify_ratio": 0.4}
)


class Following(Callback):
    """Follows a number."""

    def __init__(self):
        self.measures = {"step": [], "value": []}

    def on_call(self, state):
        self.measures["step"].append(int(state.step))
        self.measures["value"].append(float(state.params["head"]["bias"][0]))


def study_of(*arms, observe=None):
    """A study of these arms on a tiny network."""
    return Study(
        "made-up",
        "title",
        "question?",
        arms=arms,
        scales=(SCALE,),
        fields={"method": "sgd"},
        observe=observe,
    )


# -- Training --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that has run, where each run started, and its orders of examples."""
    folder = tmp_path_factory.mktemp("study")
    starts, orders = [], []
    initial_state, calls = Engine.initial_state, feed.Resident.calls

    def spying_state(self, seed, *given):
        state = initial_state(self, seed, *given)
        starts.append((seed, jax.device_get(state.params)))
        return state

    def spying_calls(self, seed, epoch, *arguments):
        for call in calls(self, seed, epoch, *arguments):
            (_, order), _ = call.arguments
            orders.append((seed, epoch, tuple(np.asarray(order))))
            yield call

    following = Following()
    study = study_of(
        SGD, PLP, observe=lambda prepared, c: following if c.seed == 1 else None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "initial_state", spying_state)
        patch.setattr(feed.Resident, "calls", spying_calls)
        runner.run(study, dataclasses.replace(SCALE, seeds=1), folder)
        runner.run(dataclasses.replace(study, arms=(SGD,)), SCALE, folder)
    return SimpleNamespace(
        folder=folder,
        records=RecordFile(folder).read(),
        starts=starts,
        orders=orders,
        following=following,
    )


def test_finished_runs_leave_their_records_alone(finished):
    assert [path.name for path in finished.folder.iterdir()] == ["records.jsonl"]
    runs = [("sgd", 0), ("plp", 0), ("sgd", 1)]
    assert [(r.arm, r.seed) for r in finished.records] == runs
    for record in finished.records:
        assert record.model == "tiny"
        assert [m["epoch"] for m in record.history] == [1, 2]
        assert 0 <= record.result["test_accuracy"] <= 1
        assert 0 < record.result["train_seconds"] < record.seconds


def test_arms_start_alike(finished):
    """One seed gives all arms the same parameters and the same order of examples."""
    first = {}
    assert {seed for seed, _ in finished.starts} == {0, 1}
    for seed, params in finished.starts:
        jax.tree.map(
            np.testing.assert_array_equal, params, first.setdefault(seed, params)
        )
    assert not np.array_equal(first[0]["head"]["kernel"], first[1]["head"]["kernel"])
    by_epoch = {}
    for seed, epoch, order in finished.orders:
        by_epoch.setdefault((seed, epoch), []).append(order)
    assert len(by_epoch) == 4
    assert len({orders[0] for orders in by_epoch.values()}) == 4
    for orders in by_epoch.values():
        assert len(set(orders)) == 1
    # Two arms with seed 0 (compilation asks for a batch of epoch 0, too), one with 1.
    assert len(by_epoch[0, 1]) == 2 * len(by_epoch[1, 1])


def test_observations_join_the_record(finished):
    *plain, observed = finished.records
    assert [record.measures for record in plain] == [{}, {}]
    assert observed.measures["step"] == list(range(1, 2 * STEPS_PER_EPOCH + 1))
    # Also through the file: floats are exact.
    assert observed.measures == finished.following.measures


# -- Sharing and resuming --------------------------------------------------------------


@pytest.fixture
def recipe_calls(monkeypatch, tmp_path):
    """Notes what is prepared and run; trains nothing."""
    seen = SimpleNamespace(prepared=[], configs=[], error=None)
    engine = SimpleNamespace(steps_per_epoch=1)

    def prepare(config):
        seen.prepared.append(config)
        return SimpleNamespace(engine=engine)

    def train(configs, callback, kept):
        (config,) = configs
        seen.configs.append(config)
        if seen.error is not None:
            raise seen.error
        return [{"test_accuracy": 0.5}]

    fake = SimpleNamespace(
        prepare=prepare, train=train, depends_on_seed=recipe.depends_on_seed
    )
    monkeypatch.setattr(trainer, "recipe", fake)
    # Else the tests before these decide, by what they have compiled.
    monkeypatch.setattr(trainer, "is_crowded", lambda: False)
    return seen


def test_programs_are_compiled_once_for_all_seeds(recipe_calls, tmp_path):
    scale = dataclasses.replace(SCALE, seeds=3, fields={**SCALE.fields, "epochs": 12})
    runner.run(study_of(SGD, ALL, RANDOM), scale, tmp_path)
    assert len(recipe_calls.configs) == 9
    prepared = [
        (config_lib.fields(c)["amplify_select"], c.seed) for c in recipe_calls.prepared
    ]
    # Random layers are drawn by the seed inside the compiled step.
    assert sorted(map(str, prepared)) == sorted(
        map(str, [(None, 0), ("all", 0), *(("random", seed) for seed in range(3))])
    )


def test_programs_are_dropped_when_memory_maps_run_out(
    recipe_calls, tmp_path, monkeypatch
):
    cleared = []
    monkeypatch.setattr(trainer, "is_crowded", lambda: True)
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    runner.run(study_of(SGD, PLP), SCALE, tmp_path)
    # The two arms take turns, and neither finds its program again.
    assert len(recipe_calls.prepared) == len(cleared) == len(recipe_calls.configs) == 4


def test_where_the_data_are_is_not_recorded(recipe_calls, tmp_path):
    scale = dataclasses.replace(SCALE, fields={**SCALE.fields, "dataset": "cifar100"})
    runner.run(study_of(SGD), scale, tmp_path, settings={"data_dir": "here"})
    assert {c.data_dir for c in recipe_calls.prepared + recipe_calls.configs} == {
        "here"
    }
    assert "here" not in RecordFile(tmp_path).path.read_text()


@pytest.mark.parametrize("observed", [False, True])
def test_interrupted_runs_are_resumed_unless_they_are_observed(
    recipe_calls, tmp_path, observed
):
    observe = (lambda prepared, config: Following()) if observed else None
    study = study_of(SGD, observe=observe)
    recipe_calls.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runner.run(study, SCALE, tmp_path)
    assert RecordFile(tmp_path).read() == []
    recipe_calls.error = None
    runner.run(study, SCALE, tmp_path)
    first, second, _ = recipe_calls.configs
    assert first.workdir == second.workdir
    assert second.overwrite == observed
    assert len(RecordFile(tmp_path).read()) == 2


# -- Plans -----------------------------------------------------------------------------


def test_plans_count_arms_runs_and_hours(tmp_path, monkeypatch):
    study = study_of(SGD, PLP)
    monkeypatch.setattr(trainer.Trainer, "measure", lambda self, task: (1800.0, 3600.0))
    lines = list(runner.describe(study, SCALE, tmp_path, {}))
    assert f"0 of 4 runs recorded already in {tmp_path}" in lines
    # Two programs of half an hour, four runs of an hour.
    assert any("2 arms x 2 seeds, 4 runs to do" in line for line in lines)
    assert lines[-1].startswith("about 5 hours in all")
    assert not list(tmp_path.iterdir())


def test_a_run_is_measured_from_a_few_steps(tmp_path, monkeypatch):
    now = 0.0

    def advance(seconds, result=None):
        nonlocal now
        now += seconds
        return result

    def train_epoch(state, seed, epoch):
        for _ in range(2):  # calls of five steps, each taking 3 s
            yield SimpleNamespace(state=advance(3, state), steps=5)

    state = SimpleNamespace(params=(), variables=())
    engine = SimpleNamespace(
        steps_per_epoch=10,
        initial_state=lambda seed: state,
        train_steps=train_epoch,
        evaluate=lambda variables, examples: advance(7),
    )
    prepared = SimpleNamespace(
        engine=engine,
        plan=Plan(10, 40, 40, seed=0, strategy=None),
        dataset=SimpleNamespace(validation=None),
    )
    fake = SimpleNamespace(
        prepare=lambda config: advance(100, prepared),
        depends_on_seed=recipe.depends_on_seed,
    )
    monkeypatch.setattr(trainer, "recipe", fake)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: now))
    study = study_of(SGD)
    (task, *_) = study.tasks(SCALE)
    compiling, running = trainer.Trainer(study, tmp_path, {}).measure(task)
    assert compiling == 100
    assert running == 40 / 5 * 3 + 4 * 7
