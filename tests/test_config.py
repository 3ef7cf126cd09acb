"""Flags, presets and files, and what contradicts what."""

import dataclasses
import inspect
import json
import typing

import pytest

import models
from training import config as config_lib
from training import data
from training.config import PLACE, Config, experiment, resolve
from training.errors import ConfigError
from training.presets import PRESETS


def parse(argv):
    """The configuration of a command line with one seed."""
    (config,) = config_lib.parse(argv)
    return config


def choices(field):
    return typing.get_args(typing.get_type_hints(Config)[field])


def test_choices_are_those_of_the_rooms():
    assert choices("model") == models.NAMES
    assert choices("dataset") == data.NAMES
    (names, _) = choices("preset")
    assert set(typing.get_args(names)) == set(PRESETS)


def test_every_field_is_documented_in_help(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in shown
        # Python 3.13 takes the indentation off.
        assert f"\n  {field.name}: " in inspect.cleandoc(Config.__doc__)


def test_defaults_are_complete():
    config = parse([])
    assert config.method == "plp"
    assert (config.plp_step, config.plp_window, config.plp_period) == (1.0, 3, 4)
    assert (config.plp_fit, config.momentum) == ("midpoint", 0.9)
    assert config.head == "linear"
    assert config.workdir == "runs/digits-resnet18-plp-0"
    # What means nothing here is left empty.
    assert config.lookahead_alpha is None
    assert config.max_learning_rate is None


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--method", "lookahead"], {"lookahead_steps": 5, "lookahead_alpha": 0.5}),
        (["--method=average"], {"plp_window": 3, "plp_period": 4, "plp_step": None}),
        (["--method", "sgd"], {"plp_window": None, "plp_period": None}),
        (["--plp-window", "6"], {"plp_period": 6}),
        (["--plp_window=6"], {"plp_period": 6}),
        (["--optimizer", "adam"], {"learning_rate": 0.001, "momentum": None}),
        (["--optimizer", "rmsprop"], {"momentum": 0.0}),
        (["--model", "vgg16"], {"head": "mlp"}),
        (
            ["--schedule", "cyclic", "--learning-rate", "0.1"],
            {"max_learning_rate": 0.2, "cycle_steps": 2000},
        ),
        (["--seed", "3", "--method", "sgd"], {"workdir": "runs/digits-resnet18-sgd-3"}),
        (["--augment"], {"augment": True}),
        (
            ["--method", "amplify"],
            {
                "strategy": "paper",
                "amplify_select": "scores",
                "amplify_measure": "g2",
                "amplify_threshold": 1.5,
                "epochs": 30,
                "schedule": None,
                "learning_rate": None,
                "plp_step": None,
            },
        ),
        (["--method", "amplify+plp"], {"plp_step": 1.0, "amplify_two_sided": False}),
        (
            ["--method", "amplify", "--amplify-select", "all"],
            {"amplify_threshold": None},
        ),
        (
            ["--method", "sgd", "--strategy", "[(2, 0.1, 0, 1), (6, 0.1, 1, 2)]"],
            {"epochs": 6, "schedule": None},
        ),
    ],
)
def test_flags_complete_each_other(argv, expected):
    config = dataclasses.asdict(parse(argv))
    assert {name: config[name] for name in expected} == expected


def test_the_papers_preset_is_its_protocol():
    config = parse(["--preset", "plp-paper"])
    assert config.dataset == "cifar100"
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (100, 128, 1.0)
    assert config.schedule == "cyclic"
    assert (config.learning_rate, config.max_learning_rate) == (0.001, 0.002)
    assert config.cycle_steps == 2000
    assert (config.momentum, config.weight_decay) == (0.9, 1e-4)
    assert config.validation_fraction == 0.2
    assert not config.augment
    assert config.width == 64


@pytest.mark.parametrize(
    ("name", "strategy", "model"),
    [
        ("amplify-paper", "paper", "resnet18"),
        ("amplify-paper-deep", "paper-deep", "resnet50"),
    ],
)
def test_amplification_presets_are_the_papers_strategies(name, strategy, model):
    config = parse(["--preset", name])
    assert (config.method, config.model, config.strategy) == (
        "amplify",
        model,
        strategy,
    )
    assert (config.dataset, config.epochs, config.width) == ("cifar100", 150, 64)
    # Assumptions, since the paper does not publish them.
    assert (config.batch_size, config.momentum, config.weight_decay) == (128, 0.9, 5e-4)
    assert config.augment
    # The strategy sets the learning rate.
    assert config.schedule is None
    assert config.learning_rate is None


def test_a_preset_keeps_what_was_not_overridden():
    config = parse(["--preset", "plp-paper", "--learning-rate", "0.0005"])
    assert (config.learning_rate, config.max_learning_rate) == (0.0005, 0.002)
    config = parse(["--preset", "plp-paper", "--optimizer", "adam"])
    assert config.learning_rate == 0.001


@pytest.mark.parametrize("name", PRESETS)
def test_flags_override_a_preset(name):
    config = parse(["--preset", name, "--epochs", "20", "--optimizer", "adam"])
    assert (config.epochs, config.optimizer) == (20, "adam")
    assert config.momentum is None  # the preset's, without meaning now
    assert config.batch_size == PRESETS[name]["batch_size"]


def test_a_file_gives_the_same_run_again(tmp_path):
    first = parse(["--method", "lookahead", "--epochs", "7", "--width", "4"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(experiment(first)))
    again = parse(["--config", str(path)])
    assert experiment(again) == experiment(first)
    other = parse(["--config", str(path), "--method", "plp", "--seed", "9"])
    assert (other.epochs, other.method, other.seed) == (7, "plp", 9)
    assert other.lookahead_alpha is None
    assert not set(PLACE) & set(experiment(first))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["--model", "vgg16"], ["--model", "resnet18"], {"head": "linear"}),
        ([], ["--plp-window", "5"], {"plp_window": 5, "plp_period": 5}),
        (["--strategy", "paper"], ["--schedule", "step"], {"strategy": None}),
        ([], ["--optimizer", "adam"], {"learning_rate": 0.001, "momentum": None}),
        (["--epochs", "9"], ["--strategy", "paper"], {"epochs": 9, "schedule": None}),
        # What was chosen, not left to its default, stays.
        (
            ["--plp-window", "5", "--plp-period", "8"],
            ["--plp-period", "7"],
            {"plp_window": 5, "plp_period": 7},
        ),
        (["--plp-period", "8"], ["--plp-window", "5"], {"plp_period": 8}),
        (
            ["--learning-rate", "0.3"],
            ["--optimizer", "nesterov"],
            {"learning_rate": 0.3, "momentum": 0.9},
        ),
        (
            ["--model", "vgg16", "--head", "linear"],
            ["--model", "vgg19"],
            {"head": "linear"},
        ),
    ],
)
def test_what_follows_a_choice_is_chosen_anew(tmp_path, first, second, expected):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(experiment(parse(first))))
    config = dataclasses.asdict(parse(["--config", str(path), *second]))
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "sgd", "--plp-step", "2"], "--plp-step 2.0 .* --method sgd"),
        (["--method", "average", "--plp-fit", "midpoint"], "--plp-fit .* average"),
        (["--method", "plp", "--lookahead-alpha", "0.1"], "--lookahead-alpha"),
        (["--method", "lookahead", "--plp-period", "4"], "--plp-period 4"),
        (["--max-learning-rate", "1"], "--max-learning-rate .* --schedule cosine"),
        (["--cycle-steps=5"], "--cycle-steps 5"),
        (["--optimizer", "adam", "--momentum", "0.9"], "--momentum .* adam"),
        (["--data-dir", "x"], "--data-dir x .* --dataset digits"),
        (["--preset", "plp-paper", "--config", "x"], "--preset and --config"),
        (
            ["--plp-window", "5", "--plp-period", "4"],
            "--plp-period 4 .* --plp-window 5",
        ),
        (["--cycle-steps=3000000000", "--schedule=cyclic"], r"below 2\*\*31"),
        (["--plp-window", "1"], "--plp-window must be at least 2"),
        (
            ["--schedule=cyclic", "--learning-rate=1", "--max-learning-rate=0.5"],
            "--max-learning-rate 0.5 is below",
        ),
        (["--head", "mlp"], "--head mlp belongs to VGG"),
        (["--model", "vgg16", "--stem", "imagenet"], "no --stem imagenet"),
        (["--optimizer", "nesterov", "--momentum", "0"], "--momentum above 0"),
        (["--momentum", "1"], r"in \[0, 1\), got 1.0"),
        (["--validation-fraction", "1"], r"in \[0, 1\), got 1.0"),
        (["--epochs", "0"], "--epochs must be positive, got 0"),
        (["--batch-size", "-1"], "--batch-size must be positive, got -1"),
        (["--learning-rate", "nan"], "--learning-rate must be finite, got nan"),
        (["--weight-decay", "inf"], "--weight-decay must be finite"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--seed", "4294967296"], r"below 2\*\*32"),
        (["--input=host", "--steps-per-call=4"], "--steps-per-call 4 .* --input host"),
        (["--accumulate", "0"], "--accumulate must be positive"),
        (["--amplify-factor", "2"], "--amplify-factor 2.0 .* --method plp"),
        (["--amplify-propagate"], "--amplify-propagate True .* --method plp"),
        (["--amplify-threshold", "2"], "--amplify-threshold 2.0 .* --method plp"),
        (
            ["--method=amplify", "--amplify-select=all", "--amplify-threshold=2"],
            "--amplify-threshold 2.0 .* --amplify-select all",
        ),
        (
            ["--method", "amplify", "--amplify-ratio", "0.5"],
            "--amplify-ratio 0.5 .* --amplify-select scores",
        ),
        (["--method=amplify", "--amplify-select=random"], "needs --amplify-ratio"),
        (
            ["--method", "amplify", "--learning-rate", "0.1"],
            "--learning-rate 0.1 contradicts --strategy paper",
        ),
        (
            ["--strategy", "paper", "--schedule", "cosine"],
            "--schedule cosine contradicts --strategy paper",
        ),
        (["--strategy", "[(5, 0.1, 0, 1)]", "--epochs", "6"], "--epochs 6 contradicts"),
        (["--strategy", "papers"], "--strategy 'papers' is neither paper nor"),
        (["--strategy", "[]"], r"--strategy '\[\]' is neither"),
        (["--config", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_contradictions_name_the_flags(argv, message):
    with pytest.raises(ConfigError, match=message):
        parse(argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("[1]", "JSON object"),
        ('{"epoch": 3}', "do not exist: epoch"),
        ('{"workdir": "x"}', "do not exist: workdir"),
        ('{"epochs": "3"}', "--epochs must be an integer or null, got '3'"),
        ('{"epochs": true}', "--epochs must be an integer or null, got True"),
        ('{"augment": 1}', "--augment must be true or false, got 1"),
        ('{"method": "sdg"}', "--method must be one of sgd, plp"),
        ('{"plp_fit": "cubic"}', "--plp-fit must be one of .* or null, got 'cubic'"),
        ('{"learning_rate": NaN}', "--learning-rate must be finite"),
    ],
)
def test_a_bad_file_is_told_in_a_sentence(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(["--config", str(path)])


def test_unparsable_flags_end_with_code_2(capsys):
    for argv in (["--epochs", "many"], ["--method", "sdg"], ["--nonsense"]):
        with pytest.raises(SystemExit) as exit_:
            parse(argv)
        assert exit_.value.code == 2
        assert capsys.readouterr().err


def test_several_seeds_are_several_runs():
    configs = config_lib.parse(["--seed", "3", "5", "--width", "8"])
    assert [c.seed for c in configs] == [3, 5]
    assert [c.workdir for c in configs] == [
        "runs/digits-resnet18-plp-3",
        "runs/digits-resnet18-plp-5",
    ]
    assert {c.width for c in configs} == {8}
    configs = config_lib.parse(["--seed", "0", "1", "--workdir", "here"])
    assert [c.workdir for c in configs] == ["here/seed-0", "here/seed-1"]
    with pytest.raises(ConfigError, match="different seeds, got"):
        config_lib.parse(["--seed", "1", "1"])


def test_differences_are_named():
    here = resolve({"seed": 1, "width": 8})
    there = config_lib.experiment(resolve({"seed": 0, "width": 8}))
    assert config_lib.differences(here, there) == ["seed is 0 there and 1 here"]
