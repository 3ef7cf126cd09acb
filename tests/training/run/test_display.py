"""What a run shows: its lines, its progress bar, and its pictures."""

import contextlib
import io
import os
import re
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.support.pictures import assert_legible
from training.run import display, plots, style
from training.run.display import (
    ProgressBar,
    epoch_header,
    epoch_line,
    result_lines,
    say,
    selection_line,
    summary_line,
    waiting,
)

METRICS = {
    "epoch": 7,
    "train_loss": 1.23456,
    "train_accuracy": 0.5,
    "validation_loss": 2.5,
    "validation_accuracy": 0.987,
    "images_per_second": 12345.6,
}
LARGE = {"train_loss": 1e30, "validation_loss": 999_999.0, "images_per_second": 9e6}
AVERAGE = {"average_validation_loss": 1.25, "average_validation_accuracy": 0.5}
UNVALIDATED = {"validation_loss": float("nan"), "validation_accuracy": float("nan")}


# -- Lines -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "average", "changes"),
    [(7, AVERAGE, {}), (99_999, {}, LARGE), (7, {}, UNVALIDATED)],
)
def test_lines_of_epochs_stand_under_their_header(epochs, average, changes):
    """In under 80 columns, each number ends where its heading ends."""
    shown = epoch_header(epochs, average=bool(average))
    groups, heads = shown.split("\n")
    ends = [
        match.end() for match in re.finditer(r"epoch|loss|accuracy|images/s", heads)
    ]
    names = ["training", "validation", *(["average"] if average else [])]
    assert len(ends) == 2 + 2 * len(names)
    for best in (False, True):
        line = epoch_line(METRICS | average | changes, epochs, best)
        width = 80 if epochs < 100 else 86
        assert max(map(len, (groups, heads, line))) < width
        words = [match.end() for match in re.finditer(r"\S+", line)]
        assert words[: len(ends) - 1] == ends[:-1]
        assert abs(words[len(ends) - 1] - ends[-1]) <= 1  # a pace of seven digits
        assert line.endswith("*") == best
    for number, group in enumerate(names):
        middle = groups.index(group) + len(group) / 2
        assert ends[2 * number] < middle < ends[2 * number + 2]
    assert groups.endswith("*: best so far")


def test_numbers_of_an_epoch():
    assert epoch_line(METRICS, 30, best=True).split() == [
        *("7/30", "1.2346", "50.0%", "2.5000", "98.7%", "12,346", "*"),
    ]
    assert epoch_line(METRICS | UNVALIDATED, 30, best=False).split()[3:5] == ["-", "-"]
    unbegun = METRICS | dict.fromkeys(AVERAGE, float("nan"))
    assert epoch_line(unbegun, 30, best=False).split()[5:7] == ["-", "-"]
    large = epoch_line(METRICS | LARGE, 30, best=False).split()
    assert (large[1], large[3]) == ("1.00e+30", "1.00e+06")


@pytest.mark.parametrize("columns", [50, 60, 72])
def test_lines_of_epochs_fit_the_terminal(columns):
    """In 50 columns the speed is left out, and in 60 the legend."""
    header = epoch_header(30, columns).split("\n")
    line = epoch_line(METRICS | {"skipped_steps": 0}, 30, True, columns)
    skipped = epoch_line(METRICS | {"skipped_steps": 3}, 30, True, columns)
    assert skipped == f"{line} 3 skipped"
    assert max(map(len, (*header, line))) <= columns
    assert ("images/s" in header[1]) == ("12,346" in line) == (columns >= 60)
    assert ("best so far" in header[0]) == (columns >= 72)
    assert line.split()[-2:] == ["12,346" if columns >= 60 else "98.7%", "*"]


RESULT = {
    **{"best_epoch": 3, "epochs": 5, "validation_loss": None, "test_loss": 1.5e21},
    **{"test_accuracy": 0.75, "test_top1_error": 0.25, "test_top5_error": 0.0123},
    **{"train_seconds": 61.04, "device": "4 x cpu"},
}


def test_results_of_a_run():
    shown = result_lines(RESULT | {"skipped_steps": 1234, "average_steps": 0})
    for text in (
        "best epoch 3 of 5 (validation loss -)\n",
        "test loss 1.50e+21  accuracy 75.00%  macro-F1 -\n",
        "top-1 error 25.00%  top-5 error 1.23%\n",
        "the average did not begin: the run ended before --average-start\n",
        "skipped 1,234 steps that were not finite\n",
        "61.0 s on 4 x cpu",
    ):
        assert text in shown
    assert max(map(len, shown.split("\n"))) < 80
    assert "average" not in result_lines(RESULT)
    averaged = {"average_steps": 12, "average_validation_loss": 0.125}
    averaged |= {f"average_test_{name}": 0.25 for name in ("loss", "accuracy")}
    averaged |= {f"average_test_top{k}_error": 0.5 for k in (1, 5)}
    shown = result_lines(RESULT | averaged).split("\n")
    assert "average over 12 steps (validation loss 0.1250)" in shown
    assert "test loss 0.2500  accuracy 25.00%  macro-F1 -" in shown


def test_results_of_several_seeds():
    numbers = np.random.default_rng(0).uniform(size=(2, 3))
    results = [
        {"test_accuracy": accuracy, "test_loss": loss}
        for accuracy, loss in zip(*numbers, strict=True)
    ]
    (mean, loss), (deviation, spread) = numbers.mean(1), numbers.std(1, ddof=1)
    assert summary_line(results) == (
        f"3 seeds, mean ± standard deviation: test accuracy {100 * mean:.2f} ± "
        f"{100 * deviation:.2f} %, test loss {loss:.4f} ± {spread:.4f}"
    )
    averaged = [r | {"average_test_accuracy": 0.25} for r in results]
    assert summary_line(averaged).endswith("; average: 25.00 ± 0.00 %")


def test_selected_layers_are_named():
    rows = [{"layer": name, "amplified": name != "b"} for name in ("a", "b", "c")]
    assert selection_line(rows) == "analysis: 2 of 3 layers selected: a, c"
    assert selection_line(rows[1:2]) == "analysis: 0 of 1 layers selected"


# -- Terminals -------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch):
    """Makes displays write to a terminal of a width; returns what it shows."""

    def make(width):
        file = io.StringIO()
        console = display.Terminal(
            file=file, force_terminal=True, width=width, highlight=False, soft_wrap=True
        )
        monkeypatch.setattr(display, "_console", lambda: console)
        return lambda: [
            re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame).rstrip()
            for frame in re.split(r"[\r\n]", file.getvalue())
        ]

    return make


def test_elsewhere_than_in_a_terminal_nothing_moves(monkeypatch):
    """As in a notebook, whose kernel sets FORCE_COLOR."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not display.Terminal(file=io.StringIO()).is_terminal


@pytest.mark.parametrize("width", [50, 80])
def test_the_bar_fits_the_terminal(terminal, width):
    shown = terminal(width)
    with ProgressBar(total_steps=1000, done=200) as bar:
        assert bar.columns == width
        line = epoch_line(METRICS, 30, False, bar.columns)
        bar.line(line)
        bar.advance(3, 4, {"loss": 1.234, "accuracy": 0.5}, steps_per_second=8.0)
        bar._progress.refresh()
    frames = [frame for frame in shown() if frame.startswith("epoch 3")]
    assert frames
    for frame in frames:
        assert len(frame) <= width
        assert "loss 1.234  accuracy 50.0%" in frame
        assert frame.endswith("0:01:40 left")  # (1000 - 204) / 8 seconds
        if width >= 80:
            assert "204/1000" in frame
    assert line in shown()


def test_lines_are_shown_as_they_are(terminal):
    """Brackets and colons are no markup; a path is not broken, and no word."""
    shown = terminal(50)
    text = "[red]layer[/red] :smile: " + "x" * 60 + " (batch normalisation evaluates)"
    with ProgressBar(10, 0) as bar:
        bar.line(text)
    frames = [frame for frame in shown() if frame and not frame.startswith("training")]
    assert frames == [
        "[red]layer[/red] :smile:",
        "x" * 60,
        "(batch normalisation evaluates)",
    ]


def test_what_is_said_is_broken_between_words(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr(sys, "stdout", Screen())
    say("resnet18 on digits with plp: 1,150 training images; 1 x cpu\nshort  line")
    assert sys.stdout.getvalue().splitlines() == [
        "resnet18 on digits with plp: 1,150 training",
        "images; 1 x cpu",
        "short  line",
    ]


def test_without_a_terminal_there_are_only_lines(capsys):
    with waiting("compiling"), ProgressBar(10, 0) as bar:
        bar.advance(1, 4, None, 1.0)
        bar.line("a line")
    assert capsys.readouterr().out == "compiling\na line\n"


@pytest.mark.parametrize(
    ("how", "output"), [("say", "pipe"), ("line", "disk"), ("line", "terminal")]
)
def test_standard_output_may_go_away(monkeypatch, how, output):
    """As with `train.py | head`, on a full disk, or at the end of a connection."""
    kept = os.dup(1)
    if output == "pipe":
        reader, writer = os.pipe()
    elif output == "disk":
        reader, writer = os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", 1)
    else:
        reader, writer = os.openpty()
    try:
        sys.stdout.flush()
        os.dup2(writer, 1)
        os.close(writer)
        os.close(reader)
        with open(1, "w", closefd=False) as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            bar = ProgressBar(10, 0)
            for text in ("one", "two"):
                say(text) if how == "say" else bar.line(text)
                with contextlib.suppress(OSError):
                    stdout.flush()
            # Standard output is now nowhere, where everything can be written.
            assert os.write(1, b"three") == 5
    finally:
        monkeypatch.undo()
        os.dup2(kept, 1)
        os.close(kept)


# -- Pictures --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _drawn_pictures(monkeypatch):
    monkeypatch.setattr(style, "Figure", Figure)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, checks the file, and returns the figure."""
    figures = []
    make = style.Figure

    def figure(*arguments, **options):
        figures.append(make(*arguments, **options))
        return figures[-1]

    monkeypatch.setattr(style, "Figure", figure)

    def draw(function, history):
        path = tmp_path / "picture.png"
        function(path, history, "a title")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert figures[-1].get_suptitle() == "a title"
        return figures[-1].axes

    return draw


def history(losses, validated=True):
    return [
        {
            "epoch": epoch,
            "train_loss": loss,
            "train_accuracy": 0.5,
            "validation_loss": loss + 0.1 if validated else None,
            "validation_accuracy": 0.4 if validated else None,
        }
        for epoch, loss in enumerate(losses, start=1)
    ]


def test_curves_show_both_parts_and_the_best_epoch(drawn):
    epochs = [m | {"average_validation_loss": 1.2} for m in history([2.0, 1.0, 1.5])]
    loss, accuracy = drawn(plots.draw_curves, epochs)
    lines = {line.get_label(): line for line in loss.get_lines()}
    assert list(lines) == ["train", "validation", "average, validation", "best epoch"]
    assert list(lines["train"].get_ydata()) == [2.0, 1.0, 1.5]
    assert list(lines["validation"].get_ydata()) == [2.1, 1.1, 1.6]
    assert list(lines["best epoch"].get_xdata()) == [2, 2]
    assert loss.get_yscale() == "linear"
    assert list(accuracy.get_lines()[0].get_ydata()) == [0.5] * 3
    # Without validation, and over decades.
    loss, accuracy = drawn(plots.draw_curves, history([200.0, 2.0, 0.02], False))
    assert [line.get_label() for line in loss.get_lines()] == ["train"]
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")


def test_the_confusion_matrix_is_by_label_and_names_the_worst(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    confusion = np.array([[8, 2, 0], [0, 0, 0], [3, 1, 4]])
    plots.draw_confusion(tmp_path / "c.png", confusion, ("cat", "dog", "owl"), "title")
    matrix, most, *_ = figures[0].axes
    np.testing.assert_allclose(
        matrix.images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [3 / 8, 1 / 8, 0.5]]
    )
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("prediction", "label")
    names = [label.get_text() for label in most.get_yticklabels()]
    assert names == ["owl as cat", "cat as dog", "owl as dog"]
    assert [bar.get_width() for bar in most.patches] == [3, 2, 1]


@pytest.mark.parametrize("title", [r"$\frac$ \$5 {x}_^ $", "\u732b\t"])
def test_text_of_the_user_is_no_markup(tmp_path, monkeypatch, title):
    """Dollars are dollars; names that the font lacks become numbers; all is drawn."""
    figures = []
    save = Figure.savefig

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(Figure, "savefig", keep)
    names = ["$x", "y$ $", "\u732b", "new\nline", "long" * 20]
    plots.draw_confusion(tmp_path / "a.png", np.ones((5, 5), int), names, title)
    plots.draw_curves(tmp_path / "b.png", history([1.0]), title)
    labels = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert labels == ["$x", "y$ $", "2", "3", "longlonglonglonglon\u2026"]
    shown = "??" if "\t" in title else title
    assert [figure.get_suptitle() for figure in figures] == [shown] * 2
    texts = [figures[0].axes[0].get_yticklabels(), [figures[1]._suptitle]]
    assert not any(text.get_parse_math() for some in texts for text in some)


def test_amplified_layers_are_drawn_from_stem_to_head(drawn):
    names = ["head", "stage10/conv", "stage2/conv", "stem"]
    rows = [
        {"layer": name, "score": score, "noise_floor": 0.1, "z_score": 0.0}
        for name, score in zip(names, (0.1, 0.2, 0.3, 0.4), strict=True)
    ]
    epochs = [
        {"epoch": 1, "amplified": [], "analysis": rows},
        {"epoch": 2, "amplified": ["stem", "head"], "analysis": None},
    ]
    when, scores = drawn(plots.draw_amplification, epochs)
    labels = [label.get_text() for label in when.get_yticklabels()]
    assert labels == ["stem", "stage2/conv", "stage10/conv", "head"]
    assert when.images[0].get_array().tolist() == [[0, 1], [0, 0], [0, 0], [0, 1]]
    assert list(scores.get_lines()[0].get_xdata()) == [0.4, 0.3, 0.2, 0.1]
    assert when.get_ylim()[0] > when.get_ylim()[1]  # the stem is at the top


def test_watched_layers_are_drawn_by_depth_and_epoch(drawn):
    epochs = [
        {
            "epoch": epoch,
            "layers": [
                {"layer": "head", "snr": 0.5 / epoch},
                {"layer": "stem", "snr": None},
            ],
        }
        for epoch in (1, 2)
    ]
    ax, _ = drawn(plots.draw_layers, epochs)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["stem", "head"]
    shown = ax.images[0].get_array()
    assert shown.mask.tolist() == [[True, True], [False, False]]
    assert shown[1].tolist() == [0.5, 0.25]


@pytest.mark.parametrize("classes", [10, 18, 100])
def test_pictures_of_a_run_can_be_read(tmp_path, monkeypatch, classes):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 9, (classes, classes)) + 99 * np.eye(classes, dtype=int)
    names = [f"a class with a long name, {i}" for i in range(classes)]
    layers = [f"stage{i}/block0/shortcut/conv" for i in range(classes)]
    rows = [
        {"layer": n, "score": 0.1, "noise_floor": 0.05, "z_score": 0.0, "snr": 0.1}
        for n in layers
    ]
    of_layers = [{"amplified": layers[:2], "analysis": rows, "layers": rows}]
    stages = [
        m | {"stage": i // 2, "block": f"stage{i // 2}/block0"} | of_layers[0]
        for i, m in enumerate(history([2.0, 1.0, 1.5, 1.4]))
    ]
    title = "resnet18 on digits, PLP, seed 0"
    plots.draw_confusion(tmp_path / "c.png", confusion, names, title)
    for draw in (plots.draw_curves, plots.draw_amplification, plots.draw_layers):
        draw(tmp_path / "p.png", stages, title)
    assert len(figures) == 4
    for figure in figures:
        assert_legible(figure)
