"""Runs studies and reports on them.

python -m experiments list
python -m experiments run plp --quick
python -m experiments report runs/experiments/quick/plp
python -m experiments evidence
"""

import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import runner, studies
from experiments.study import Scale, Study
from training.errors import ConfigError, UserError
from training.run.interrupts import acknowledged

_Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]
_Folders = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")
]
# Options that are unset by default.
_Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
_Texts = Annotated[
    tuple[str, ...] | None,
    tyro.conf.arg(metavar="TEXT [TEXT ...]", help_behavior_hint=""),
]
_Count = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
_Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
_OUT = Path("runs", "experiments")  # ignored by git


def list_studies() -> None:
    """Lists the studies, their scales and their arms."""
    for name in studies.NAMES:
        study = studies.load(name)
        print(f"{name}: {study.title}")
        for scale in study.scales:
            tasks = study.tasks(scale)
            arms = len({task.arm.name for task in tasks})
            _item(
                f"run {name} --scale {scale.name}: {', '.join(scale.models)}; {arms} "
                f"arms x {scale.seeds} seeds, {len(tasks)} runs"
            )
        for group in dict.fromkeys(arm.group for arm in study.arms):
            names = [arm.name for arm in study.arms if arm.group == group]
            _item(f"{group or 'arms'}: {', '.join(names)}")


def run(
    study: _Name,
    *,
    scale: _Text = None,
    small: bool = False,
    quick: bool = False,
    models: _Texts = None,
    arms: _Texts = None,
    seeds: _Count = None,
    epochs: _Count = None,
    dataset: _Text = None,
    data_dir: _Text = None,
    train_fraction: _Number = None,
    width: _Count = None,
    batch_size: _Count = None,
    precision: _Text = None,
    budget_minutes: _Number = None,
    name: _Text = None,
    out: Path = _OUT,
    dry_run: bool = False,
) -> None:
    """Carries out a study's runs that are not recorded yet, and writes its report.

    Records and report are in OUT/SCALE/STUDY. Other networks, epochs and so on are
    another scale, with a name and a folder of its own.

    Args:
      study: The study; see the command list.
      scale: Its scale: full (the default, the paper's), small, quick, or another that
        it has.
      small: Short for --scale small: CIFAR-100 in an hour on two CPU cores, with a
        narrow network and part of the images.
      quick: Short for --scale quick: digits in ten minutes on two CPU cores.
      models: Networks, instead of the scale's.
      arms: Arms, instead of the scale's; also of sweeps, by name, such as
        g2-case1-t0.9 of the study amplification.
      seeds: Number of paired seeds.
      epochs: Passes over the training part.
      dataset: digits, cifar10, cifar100, or another that train.py knows.
      data_dir: Directory of prepared tensorflow-datasets sets.
      train_fraction: Part of the training images to train on.
      width: Channels of the networks' first stage.
      batch_size: Examples in a step. The study mechanism trains the network plain on
        all examples in one batch.
      precision: float32, bfloat16, float16 or float64.
      budget_minutes: Time for this call. A run that is under way when it ends is
        stopped: the next call resumes it where the study trains as train.py does and
        observes nothing, else it starts again. Compilation, up to a minute a network,
        and runs of small_batches, predictors and sequential cannot be stopped.
      name: A name for another scale, and so for its folder, instead of one that lists
        what differs.
      out: Where results are kept. The committed ones are made with --out results.
      dry_run: Only print the plan: arms, runs, and how long they are expected to take,
        from a few measured steps of each network.
    """
    declared = studies.load(study)
    chosen = _scale(declared, scale, small=small, quick=quick).changed(
        name=name,
        models=models,
        arms=arms,
        seeds=seeds,
        fields={
            "epochs": epochs,
            "dataset": dataset,
            "train_fraction": train_fraction,
            "width": width,
            "batch_size": batch_size,
            "precision": precision,
        },
    )
    settings = {} if data_dir is None else {"data_dir": data_dir}
    folder = out / chosen.name / study
    if dry_run:
        for line in runner.describe(declared, chosen, folder, settings):
            print(line, flush=True)
        return
    runner.run(
        declared, chosen, folder, settings=settings, budget_minutes=budget_minutes
    )
    report((folder,))


def report(folders: _Folders) -> None:
    """Writes the reports of studies from their records.

    Args:
      folders: Folders with records, such as results/quick/plp.
    """
    from experiments import report as report_lib  # matplotlib takes a while to import
    from experiments import table

    for folder in folders:
        loaded = table.load(folder)
        if loaded.outdated:
            print(
                f"{folder}: {loaded.outdated} records of arms that are now declared "
                f"differently are left out"
            )
        if not loaded.records:
            print(f"{folder}: no records, and so no report")
            continue
        print(f"report: {report_lib.write(loaded, folder)}")


def evidence() -> None:
    """Writes the tables of all methods' evidence, from the committed records.

    They are in README.md and docs/methods/index.md, between markers.
    """
    from experiments import evidence as evidence_lib  # takes a while to import

    evidence_lib.update_pages(Path())


def _scale(study: Study, name: str | None, *, small: bool, quick: bool) -> Scale:
    """The scale that the flags name."""
    given = {
        "--scale": name,
        "--small": small and "small",
        "--quick": quick and "quick",
    }
    named = {flag: value for flag, value in given.items() if value}
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} are two scales: give one of them")
    name = str(next(iter(named.values()), "full"))
    names = [scale.name for scale in study.scales]
    if name not in names:
        raise ConfigError(f"--scale {name}: {study.name} has {', '.join(names)}")
    return study.scale(name)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    commands: dict[str, Callable[..., Any]] = {
        "list": list_studies,
        "run": run,
        "report": report,
        "evidence": evidence,
    }
    try:
        with acknowledged():
            tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="python -m experiments",
                description="Runs studies and reports on them.",
                args=None if argv is None else list(argv),
            )
            sys.stdout.flush()
    except UserError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as interrupt:
        print(
            "\nexperiments: stopped; finished runs are recorded: give the same command "
            "to continue",
            file=sys.stderr,
        )
        return 128 + (getattr(interrupt, "signal", None) or signal.SIGINT)
    return 0


if __name__ == "__main__":
    code = main()
    if code > 128:
        # Threads of the compiler may still be at work, and an orderly exit would crash
        # on them. All records are on disk.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
