"""The picture of a run: loss and accuracy over the epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLORS = {"train": "#0072B2", "validation": "#D55E00"}  # Okabe-Ito, for all eyes


def draw(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws training and validation loss and accuracy to a PNG file.

    Args:
      path: The file to write.
      history: The run's metrics, an epoch an entry.
      title: What the run was.
    """
    # Figure, not pyplot: no global state, no display, and a quicker import.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2)
    epochs = [metrics["epoch"] for metrics in history]
    validated = [m for m in history if m["validation_loss"] is not None]
    best = min(validated, key=lambda m: m["validation_loss"], default=None)
    for ax, name, unit in zip(axes, ("loss", "accuracy"), (" (nats)", ""), strict=True):
        for part, color in COLORS.items():
            values = [metrics[f"{part}_{name}"] for metrics in history]
            if any(value is not None for value in values):
                ax.plot(epochs, values, color=color, label=part, marker=".", ms=4)
        if best is not None:
            ax.axvline(best["epoch"], color="0.6", ls=":", lw=1.2, label="best epoch")
        ax.set(xlabel="epoch", ylabel=f"{name}{unit}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
        ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    low, high = axes[0].get_ylim()
    if (low > 0 and high > 10 * low) or low <= 0:
        # The first epochs' losses would flatten all that follows.
        axes[0].set_yscale("log")
    axes[1].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    figure.suptitle(title)
    figure.savefig(path)
