"""What a study would run, and how long that is expected to take."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import plan
from experiments.progress import describe_seconds
from experiments.records import RecordFile
from experiments.study import Scale, Study
from experiments.trainer import Trainer


def describe(
    study: Study, scale: Scale, folder: Path, settings: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the lines of a plan: arms, runs, and expected hours.

    The time is measured on a few steps of each network's first arm, on this machine.
    It leaves out what the study observes, and evaluations on the test set.

    Args:
      study: The study.
      scale: Its scale.
      folder: The study's folder, whose records are counted as done.
      settings: Fields of a configuration that do not change what runs compute.

    Raises:
      UserError: If the configuration, the data or the records do not allow it.
    """
    tasks = plan.tasks(study, scale)
    file = RecordFile(folder)
    left = plan.missing(tasks, file.read() if file.path.exists() else [])
    arms = {task.arm.name: task.arm for task in tasks}
    yield f"{study.title}, scale {scale.name}"
    if scale.fields:
        yield ", ".join(f"{name} {value}" for name, value in scale.fields.items())
    yield from (f"  {name}: {arm.label}" for name, arm in arms.items())
    yield f"{len(tasks) - len(left)} of {len(tasks)} runs recorded already in {folder}"
    total = 0.0
    for model in dict.fromkeys(task.model for task in left):
        ours = [task for task in left if task.model == model]
        count = sum(scale.runs(arm, model) for arm in arms.values())
        line = f"{model}: {count} arms x {scale.seeds} seeds, {len(ours)} runs to do"
        # A cascade's stages cannot be measured before those before them.
        measured = [task for task in ours if "cascade" not in task.config]
        if study.execute is None and measured:
            compiling, running = Trainer(study, folder, settings).measure(measured[0])
            programs = len({task.arm.name for task in ours})
            expected = programs * compiling + len(ours) * running
            total += expected
            line += (
                f", {describe_seconds(running)} each and {describe_seconds(compiling)} "
                f"to compile an arm: {_hours(expected)}"
            )
        yield line
    if total:
        yield (
            f"about {_hours(total)} in all on this machine, by a few measured "
            f"steps of each network's first arm, without what the study observes and "
            f"evaluations on the test set"
        )


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.2g} hours"
