"""Runs studies and reports on them.

python -m experiments list
python -m experiments run plp --quick
python -m experiments report plp
"""

import dataclasses
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import studies
from experiments.records import Record
from experiments.study import Scale, Study
from training.errors import ConfigError, UserError

_Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]
_RESULTS = Path("results")


def list_studies() -> None:
    """Tells which studies there are, and how large."""
    for name in studies.NAMES:
        study: Study = studies.module(name).STUDY
        print(f"{name}: {study.title}")
        for size in ("full", "small", "quick"):
            scale: Scale = getattr(study, size)
            flags = "" if size == "full" else f" --{size}"
            arms = len(study.arms if scale.arms is None else scale.arms)
            _item(
                f"run {name}{flags}: {', '.join(scale.models)}; {arms} arms x "
                f"{scale.seeds} seeds = {len(scale.models) * arms * scale.seeds} runs"
            )
        for group in dict.fromkeys(arm.group for arm in study.arms):
            names = [arm.name for arm in study.arms if arm.group == group]
            _item(f"{group or 'arms'}: {', '.join(names)}")


def _item(text: str) -> None:
    print(
        textwrap.fill(
            text,
            width=88,
            initial_indent="  ",
            subsequent_indent="    ",
            max_lines=4,
            break_on_hyphens=False,
        )
    )


def run(
    study: _Name,
    *,
    models: tuple[str, ...] | None = None,
    arms: tuple[str, ...] | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    train_fraction: float | None = None,
    width: int | None = None,
    batch_size: int | None = None,
    precision: str | None = None,
    budget_minutes: float | None = None,
    out: Path = _RESULTS,
    small: bool = False,
    quick: bool = False,
) -> None:
    """Does a study's runs that have no record yet, and writes its report.

    Args:
      study: The study; `list` tells which there are.
      models: Networks to train, instead of the study's.
      arms: Arms to train, instead of all.
      seeds: How many paired seeds.
      epochs: Passes over the training part.
      dataset: digits, cifar10 or cifar100.
      data_dir: Directory of prepared tensorflow-datasets sets.
      train_fraction: Part of the training images to train on.
      width: Channels of the networks' first stage.
      batch_size: Examples in a step; mechanism's network plain always takes all.
      precision: float32, bfloat16, float16 or float64.
      budget_minutes: Begin no run that would not end within so many minutes.
      out: Where studies are kept, a folder each.
      small: CIFAR-100 as far as two CPU cores bear it in an hour: a narrow network and
        part of the images. Other flags override its scale.
      quick: The study in miniature, on digits: ten minutes on two CPU cores. Other
        flags override its scale.
    """
    from experiments import plan, runner

    module = studies.module(study)
    declared: Study = module.STUDY
    if small and quick:
        raise ConfigError("--small and --quick are two scales: give one of them")
    scale = _scaled(
        declared.quick if quick else declared.small if small else declared.full,
        {"models": models, "arms": arms, "seeds": seeds},
        {
            "epochs": epochs,
            "dataset": dataset,
            "data_dir": data_dir,
            "train_fraction": train_fraction,
            "width": width,
            "batch_size": batch_size,
            "precision": precision,
        },
    )
    folder = out / study
    options: dict[str, Any] = {"budget_minutes": budget_minutes}
    if hasattr(module, "watcher"):
        options["make_watcher"] = module.watcher
    found = runner.run(declared, scale, folder, **options)
    total = len(plan.tasks(declared, scale))
    if len(found) < total:
        print(
            f"the budget ends with {len(found)} of {total} runs done: give the same "
            f"command to go on"
        )
    _report(declared, found, folder)


def report(study: _Name, *, out: Path = _RESULTS) -> None:
    """Writes the report of what was run.

    Args:
      study: The study.
      out: Where studies are kept, a folder each.
    """
    from experiments import plan

    declared: Study = studies.module(study).STUDY
    folder = out / study
    tasks = plan.tasks(declared, plan.read_scale(folder))
    _report(declared, plan.finished(tasks, folder), folder)


def _scaled(scale: Scale, own: dict[str, Any], fields: dict[str, Any]) -> Scale:
    given = {name: value for name, value in own.items() if value is not None}
    asked = {name: value for name, value in fields.items() if value is not None}
    return dataclasses.replace(scale, **given, fields={**scale.fields, **asked})


def _report(study: Study, records: Sequence[Record], folder: Path) -> None:
    from experiments import report  # draws, which takes a while to import

    print(f"report: {report.write(study, records, folder)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    commands: dict[str, Callable[..., Any]] = {
        "list": list_studies,
        "run": run,
        "report": report,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m experiments",
            description="Runs studies and reports on them.",
            args=None if argv is None else list(argv),
        )
    except UserError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(
            "\nexperiments: stopped; what has finished is recorded: give the same "
            "command to go on",
            file=sys.stderr,
        )
        return 128 + (getattr(interrupt, "signal", None) or signal.SIGINT)
    return 0


if __name__ == "__main__":
    code = main()
    if code > 128:
        # Threads of the compiler may still be at work, and an orderly end would crash
        # on them. All that is recorded is on disk.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
