"""Deep cascade learning: the runs of the stages, one after the other."""

from collections.abc import Callable
from typing import Any

from training import data
from training.engine.state import Given
from training.run import workdir
from training.run.checkpoints import read
from training.run.display import result_lines, say
from training.run.workdir import WorkDirectory, read_metrics
from training.settings.config import Config
from training.stages import Stage, handed_on, make_stages

RunStage = Callable[[Config, WorkDirectory, data.Dataset, Given | None], dict[str, Any]]


def run(
    config: Config, directory: WorkDirectory, dataset: data.Dataset, run_stage: RunStage
) -> dict[str, Any]:
    """Runs the stages of a cascade, each from the best variables of the one before.

    A stage is a run in a directory of its own. One that has finished is not repeated,
    and one that has not is resumed.

    Args:
      config: The cascade's configuration.
      directory: Its work directory.
      dataset: Its data.
      run_stage: Runs a stage, from its configuration, its work directory, the data
        and the variables that it starts from; returns the content of its
        ``result.json``.

    Returns:
      The content of the cascade's ``result.json``.

    Raises:
      UserError: See :func:`training.recipe.train`.
    """
    stages = make_stages(config)
    if not directory.is_unfinished:
        directory.start(dataset)
    best: Any = None
    history: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for stage in stages:
        own = stage.configure(config)
        with WorkDirectory(own) as part:
            if part.result is None:
                say(f"stage {stage.number} of {len(stages)}: {stage.block}")
                given = None if best is None else handed_on(best, stage)
                results.append(run_stage(own, part, dataset, given))
            else:
                results.append(part.result)
            best = read(part.path / workdir.BEST).tree
            history += _continued(history, stage, read_metrics(part.path))
        directory.rewrite(dataset, history)
    result = _summary(stages, results)
    title = f"{config.model} on {dataset.name}, {config.method}, seed {config.seed}"
    directory.draw_curves(history, title)
    directory.finish(result)
    say(f"{result_lines(result)}\nrecorded in {directory.path}")
    return result


def _continued(
    history: list[dict[str, Any]], stage: Stage, metrics: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The epochs of a stage, counted on from those before."""
    before = history[-1] if history else {"epoch": 0, "step": 0}
    place = {"stage": stage.number, "block": stage.block}
    return [
        line | {name: before[name] + line[name] for name in ("epoch", "step")} | place
        for line in metrics
    ]


def _summary(
    stages: tuple[Stage, ...], results: list[dict[str, Any]]
) -> dict[str, Any]:
    """The result of the last stage, with sums over all and a line for each."""
    sums = {
        name: sum(result[name] for result in results)
        for name in ("epochs", "steps", "skipped_steps", "train_seconds")
    }
    before = sums["epochs"] - results[-1]["epochs"]
    names = ("best_epoch", "epochs", "validation_loss", "test_loss", "test_accuracy")
    lines = [
        {"stage": stage.number, "block": stage.block}
        | {name: result[name] for name in (*names, "train_seconds")}
        for stage, result in zip(stages, results, strict=True)
    ]
    last = results[-1]
    return last | sums | {"best_epoch": before + last["best_epoch"], "stages": lines}
