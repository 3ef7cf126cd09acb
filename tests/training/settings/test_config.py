"""Flags, presets and files, and what contradicts what."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import ConfigError
from training.settings import config as config_lib
from training.settings import flags
from training.settings.config import Config, chosen, identity, resolve
from training.settings.presets import PRESETS
from training.settings.schedules import Cyclic


def parse(argv):
    """The configuration of a command line with one seed."""
    (config,) = config_lib.parse(argv)
    return config


def test_every_flag_is_in_help_once(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for name, declared in flags.flags(Config).items():
        entry = rf"^[│ ]{{1,2}}(--lr .*?, )?{flags.spell(name)}[ ,]"
        count = len(re.findall(entry, shown, re.MULTILINE))
        assert count == (not declared.hidden), name
    for group in config_lib.GROUPS.values():
        assert group.__doc__ in shown


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--method=average"], {"plp_window": 3, "plp_period": 4, "plp_step": None}),
        (["--plp-window", "6"], {"plp_period": 6}),
        (["--optimizer", "adam"], {"learning_rate": 0.001, "momentum": None}),
        (["--optimizer", "rmsprop"], {"momentum": 0.0}),
        (["--model", "vgg16"], {"head": "mlp"}),
        (
            ["--schedule", "cyclic", "--lr", "0.1"],
            {"learning_rate": 0.1, "max_learning_rate": 0.2, "cycle_momentum": False},
        ),
        (
            ["--method", "amplify"],
            {
                **{"strategy": "paper", "epochs": 30},
                **{"schedule": None, "learning_rate": None, "plp_step": None},
            },
        ),
        (["--method", "amplify+plp"], {"plp_step": 1.0, "amplify_threshold": 1.5}),
        (["--method=amplify", "--model=tiny"], {"amplify_threshold": 1.4}),
        (
            ["--method", "sgd", "--strategy", "[(2, 0.1, 0, 1), (6, 0.1, 1, 2)]"],
            {"epochs": 6, "schedule": None},
        ),
    ],
)
def test_flags_complete_each_other(argv, expected):
    config = config_lib.fields(parse(argv))
    assert {name: config[name] for name in expected} == expected


def test_a_preset_keeps_what_was_not_overridden():
    config = parse(["--preset", "plp-paper", "--learning-rate", "0.0005"])
    assert config.learning_rate == 0.0005
    assert config.get(Cyclic).max_learning_rate == 0.002
    config = parse(["--preset", "plp-paper", "--optimizer", "adam"])
    assert config.learning_rate == 0.001


def test_flags_override_a_preset():
    name = "plp-paper"
    config = parse(["--preset", name, "--width", "20", "--optimizer", "adam"])
    assert (config.width, config.optimizer) == (20, "adam")
    assert config_lib.fields(config)["momentum"] is None  # without meaning now
    assert config.batch_size == PRESETS[name]["batch_size"]


def test_show_config_prints_a_file_that_gives_the_run(tmp_path, capsys):
    argv = ["--method", "lookahead", "--epochs", "7", "--seed", "4"]
    with pytest.raises(SystemExit) as exit_:
        parse([*argv, "--show-config"])
    assert exit_.value.code == 0
    path = tmp_path / "config.json"
    path.write_text(capsys.readouterr().out)
    assert parse(["--config", str(path)]) == parse(argv)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["--model", "vgg16"], ["--model", "resnet18"], {"head": "linear"}),
        (["--strategy", "paper"], ["--schedule", "step"], {"strategy": None}),
        (["--epochs", "9"], ["--strategy", "paper"], {"epochs": 9, "schedule": None}),
        (["--method=lookahead"], ["--method=plp"], {"lookahead_alpha": None}),
        # What was chosen, not left to its default, stays.
        (["--plp-period", "8"], ["--plp-window", "5"], {"plp_period": 8}),
        (["--model=vgg16", "--head=linear"], ["--model=vgg19"], {"head": "linear"}),
    ],
)
def test_what_follows_a_choice_is_chosen_again(tmp_path, first, second, expected):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(identity(parse(first))))
    config = config_lib.fields(parse(["--config", str(path), *second]))
    assert {name: config[name] for name in expected} == expected


PROCESSES = ["--num-processes=2", "--process-id=1"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "plp-paper", "--config", "x"], "--preset and --config"),
        (["--config", "nowhere.json"], "nowhere.json cannot be read"),
        # Dependence and ranges are declared; two of them from end to end.
        (["--dropout=0.1"], "--dropout 0.1 .* --model resnet18: .* vit-tiny"),
        (["--cycle-steps=3000000000", "--schedule=cyclic"], r"below 2\*\*30"),
        (["--cascade-epochs=3"], "no meaning without --cascade"),
        (["--model=vgg16", "--initial-weights=a.npz"], "choose --model resnet18 or"),
        (["--initial-weights-sha256=00"], "no meaning without"),
        # Contradictions of flags with each other.
        (
            ["--schedule=cyclic", "--learning-rate=1", "--max-learning-rate=0.5"],
            "--max-learning-rate 0.5 is below",
        ),
        (["--precise-bn=0"], "--precise-bn 0 leaves .* or --average none"),
        (["--average=ema", "--average-power=8"], "or choose --average power"),
        (["--head", "mlp"], "--head mlp is for VGG"),
        (["--model=vgg16", "--stem=imagenet"], "no --stem imagenet"),
        (["--optimizer", "nesterov", "--momentum", "0"], "--momentum above 0"),
        (["--split-per-seed", "--split-seed=3"], "--split-seed 3 contradicts"),
        *(
            (["--schedule=cyclic", "--cycle-momentum", flag], "sgd or nesterov with a")
            for flag in ("--optimizer=rmsprop", "--momentum=0.05")
        ),
        (
            ["--schedule=plateau", "--validation-fraction=0"],
            "--schedule plateau watches the validation loss",
        ),
        (
            ["--early-stopping=3", "--validation-fraction=0"],
            "--early-stopping watches the validation loss",
        ),
        (["--method=amplify", "--amplify-select=random"], "needs --amplify-ratio"),
        (
            ["--method=amplify", "--amplify-inner", "--amplify-propagate"],
            "--amplify-inner contradicts --amplify-propagate",
        ),
        (
            ["--method=amplify", "--amplify-lowest", "--amplify-two-sided"],
            "leave --amplify-lowest out",
        ),
        (
            ["--method", "amplify", "--learning-rate", "0.1"],
            "--learning-rate 0.1 contradicts --strategy paper",
        ),
        (["--strategy", "[(5, 0.1, 0, 1)]", "--epochs", "6"], "--epochs 6 contradicts"),
        (["--strategy", "papers"], "--strategy 'papers' is neither paper nor"),
        *(
            (["--strategy", text], "^--strategy [^\n]*$")
            for text in ("[(5, 0.1", "[()]", "{}", "5", "[" * 9999, "1+" * 9999 + "1")
        ),
        (["--coordinator-address=a:x", *PROCESSES], "must be HOST:PORT"),
        (["--coordinator-address=a:65536", *PROCESSES], "must be HOST:PORT"),
        (PROCESSES, "belong together"),
        (["--coordinator-address=a:1", *PROCESSES[:-1], "--process-id=2"], "below"),
        (["--config", ""], "--config"),
        (["--config", "."], "--config"),
        (["--config", "x" * 300], "--config"),
    ],
)
def test_contradictions_name_the_flags(argv, message):
    with pytest.raises(ConfigError, match=message):
        parse(argv)


def test_several_seeds_are_several_runs():
    configs = config_lib.parse(["--seed", "3", "5"])
    assert [c.seed for c in configs] == [3, 5]
    assert [c.workdir for c in configs] == [
        "runs/digits-resnet18-plp-3",
        "runs/digits-resnet18-plp-5",
    ]
    configs = config_lib.parse(["--seed", "0", "1", "--workdir", "here"])
    assert [c.workdir for c in configs] == ["here/seed-0", "here/seed-1"]
    with pytest.raises(ConfigError, match="--seed needs different values, got"):
        config_lib.parse(["--seed", "1", "1"])
    assert parse(["--seed", str(2**32 - 1)]).seed == 2**32 - 1


def test_several_rates_are_several_runs_of_every_seed():
    flags = ["--lr", "0.1", "0.3", "--seed", "0", "1"]
    configs = config_lib.parse([*flags, "--workdir", "here"])
    assert [(c.learning_rate, c.seed, c.workdir) for c in configs] == [
        (rate, seed, f"here/learning-rate-{rate}/seed-{seed}")
        for rate in (0.1, 0.3)
        for seed in (0, 1)
    ]
    assert len({c.workdir for c in config_lib.parse(flags)}) == 4
    with pytest.raises(ConfigError, match="--learning-rate needs different values"):
        config_lib.parse(["--lr", "0.1", "0.1"])


# -- Runs that are the same, and runs that are not ------------------------------------

DECLARED = {n: one for n, one in flags.flags(Config).items() if not one.hidden}
STRINGS = {
    "dataset": st.sampled_from(["digits", "cifar100", "./a/x.npz", "./b/x.npz", "~/d"]),
    "amplify_select": st.sampled_from(["scores", "random", "all", "head"]),
    "strategy": st.sampled_from(["paper", "[(3, 0.1, 0, 1), (9, 0.1, 1, 2)]"]),
}
NAMES = [
    name
    for name, one in DECLARED.items()
    if one.kind is not str or one.choices or name in STRINGS
]


def context(name):
    """Choices under which a flag has a meaning."""
    only = DECLARED[name].only
    if only is None or only[1] == (None,):
        return {}
    return {**context(only[0]), only[0]: only[1][0]}


def inside(one):
    """A value that a flag may have by itself."""
    if one.choices:
        return st.sampled_from(list(one.choices))
    if one.kind is bool:
        return st.booleans()
    limit = 2**31 if one.kind is int else 1e38
    low, high = max(one.low, one.above, -limit), min(one.high, one.below, limit)
    if one.kind is int:
        return st.integers(int(low), int(high) - 1)
    ends = {"exclude_min": low != one.low, "exclude_max": high != one.high}
    return st.floats(low, high, **ends)


@st.composite
def some_fields(draw):
    """A few flags, each with a choice under which it has a meaning."""
    fields = {}
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=6, unique=True)):
        value = draw(STRINGS[name] if name in STRINGS else inside(DECLARED[name]))
        fields |= {**context(name), name: value}
    return fields


def resolved(fields):
    """A configuration of those fields that make sense together."""
    config, made = resolve({}), {}
    for name, value in fields.items():
        try:
            config = resolve(made | {name: value})
        except ConfigError:
            continue
        made[name] = value
    return config


@settings(max_examples=100, deadline=None)
@given(some_fields())
def test_a_record_gives_the_configuration_back(fields):
    config = resolved(fields)
    for record in (identity(config), chosen(config)):
        there = json.loads(json.dumps(record))
        assert identity(resolve({}, there)) == identity(config)
        assert resolve({}, there).workdir == config.workdir
    assert not config_lib.differences(config, json.loads(json.dumps(identity(config))))
    assert None not in chosen(config).values()
    # How a run is kept does not matter to what it computes.
    assert not {"workdir", "overwrite", "data_dir", "on_nonfinite"} & {
        *identity(config)
    }


@settings(max_examples=100, deadline=None)
@given(some_fields(), some_fields())
def test_only_equal_runs_share_a_default_work_directory(first, second):
    first, second = resolved(first), resolved(first | second)
    is_same = identity(first) == identity(second)
    assert (first.workdir == second.workdir) == is_same
    assert bool(config_lib.differences(first, identity(second))) != is_same
    assert Path(first.workdir).parent == Path("runs")


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("cifar100", "cifar100-resnet18-plp-0"),
        ("./my flowers/", "my flowers-resnet18-plp-0-"),
        ("~/flowers.npz", "flowers-resnet18-plp-0-"),
        ("/", "data-resnet18-plp-0-"),
    ],
)
def test_default_work_directories_name_the_data_set(dataset, name):
    (start, part) = Path(parse(["--dataset", dataset]).workdir).parts
    assert start == "runs"
    assert part.startswith(name)
    assert len(part) in (len(name), len(name) + 8)


def test_differences_are_named():
    here = resolve({"seed": 1, "width": 8})
    there = identity(resolve({"seed": 0, "width": 8}))
    assert config_lib.differences(here, there) == ["seed is 0 there and 1 here"]
    there["seed"] = "1"
    assert config_lib.differences(here, there) == ['seed is "1" there and 1 here']
    del there["seed"]
    assert config_lib.differences(here, there) == ["seed is 0 there and 1 here"]


def test_a_run_from_before_a_flag_was_added_is_the_same_run():
    here = resolve({"optimizer": "adam", "augment": True})
    there = identity(here)
    for added in ("learning_rate", "label_smoothing", "precise_bn"):
        del there[added]
    assert not config_lib.differences(here, there)
    del there["augment"]
    wanted = ["augment is false there and true here"]
    assert config_lib.differences(here, there) == wanted


def test_a_home_directory_is_expanded(monkeypatch, tmp_path):
    """Shells leave that of --workdir=~/run alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (parsed,) = config_lib.parse(["--workdir=~/run"])
    assert parsed.workdir == str(tmp_path / "run")
    with pytest.raises(ConfigError, match="--workdir ~no-one/x cannot be used"):
        config_lib.parse(["--workdir=~no-one/x"])
