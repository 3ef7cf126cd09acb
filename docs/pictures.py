"""The pictures of the method cards, drawn at the build: ``draw(folder)``.

The first line of a function's docstring is the title of its picture.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import plp_optax
from training.run import style
from training.run.style import BLUE, GREY, ORANGE
from training.run.style import VERMILION as RED


def follow(
    tx: optax.GradientTransformation,
    gradient: Callable[[jax.Array, jax.Array], jax.Array],
    start: Any,
    steps: int,
) -> tuple[np.ndarray, Any]:
    """The parameters after 0, 1, ..., steps updates, and the states after each."""

    def step(carry: Any, i: jax.Array) -> Any:
        w, state = carry
        updates, state = tx.update(gradient(w, i), state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), (w, state)

    start = jnp.asarray(start)
    carry = start, tx.init(start)
    _, (points, states) = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps)))(
        carry
    )
    return np.concatenate([start[None], points]), states


def valley(w: jax.Array) -> jax.Array:
    """A curved valley; the minimum is at (2, 1.6)."""
    return 0.5 * (w[0] - 2) ** 2 + 2 * (w[1] - 0.4 * w[0] ** 2) ** 2


def slope(w: jax.Array, i: jax.Array) -> jax.Array:
    del i
    return jax.grad(valley)(w)


def contours(axes: Any) -> None:
    x, y = np.meshgrid(np.linspace(-1.9, 2.6, 200), np.linspace(-0.3, 2.6, 200))
    levels = np.geomspace(0.02, 20, 13)
    axes.contour(x, y, valley(np.stack([x, y])), levels=levels, colors="0.85")
    axes.plot(2, 1.6, "k+", ms=10)
    axes.set(xlabel="first parameter", ylabel="second parameter")


def amplify_layers(figure: Figure) -> None:
    """Two of six layers, those with the least noise, are amplified by 2."""
    noise = 2.0 ** np.arange(-1, 5)
    names = [f"layer {i + 1}" for i in range(noise.size)]
    params = {name: {"kernel": jnp.zeros(200)} for name in names}
    tx = plp_optax.amplify_layers(
        [plp_optax.AmplificationWindow(20, 80, epoch_steps=20, factor=2.0)],
        select=plp_optax.by_score(1.0),
    )
    rng = np.random.default_rng(0)
    state, factors, update = tx.init(params), [], jax.jit(tx.update)
    for _ in range(100):
        gradients = {
            name: {"kernel": jnp.asarray(1 + s * rng.normal(size=200), jnp.float32)}
            for name, s in zip(names, noise, strict=True)
        }
        factors.append(state.factors)
        _, state = update(gradients, state)
    analyses = plp_optax.layer_analyses(state, params)
    left, right = figure.subplots(1, 2)
    colors = [RED if a.amplified else GREY for a in analyses]
    left.bar([a.layer for a in analyses], [a.score for a in analyses], color=colors)
    left.axhline(analyses[0].noise_floor, color="k", ls=":", label="pure noise")
    left.set(title="Scores (g2); red: selected", ylim=(0, 1.05))
    left.tick_params(axis="x", rotation=30)
    left.legend()
    right.axvspan(20, 40, color="0.9", label="analysis epoch")
    for column, color in zip(np.transpose(factors), colors, strict=True):
        right.step(range(100), column, where="post", color=color, lw=2)
    right.set(title="Factor of each layer", xlabel="optimizer step", ylim=(0.9, 2.4))
    right.set_yticks([1, 2])
    right.legend(loc="upper right")


def anderson(figure: Figure) -> None:
    """A sliding window is fastest on a quadratic of condition 1,000."""
    curvature = jnp.geomspace(1e-3, 1, 30)
    root = np.sqrt(1e-3)
    window = plp_optax.anderson
    methods = {
        "gradient descent": (optax.sgd(1.0), GREY),
        "Nesterov momentum": (
            optax.sgd(1.0, momentum=(1 - root) / (1 + root), nesterov=True),
            ORANGE,
        ),
        "restarted window": (optax.chain(optax.sgd(1.0), window(10, period=10)), BLUE),
        "sliding window": (optax.chain(optax.sgd(1.0), window(10)), RED),
    }
    axes = figure.subplots()
    for name, (tx, color) in methods.items():
        points, _ = follow(tx, lambda w, i: curvature * w, jnp.ones(30), 200)
        norms = np.linalg.norm(points * curvature, axis=1)
        axes.semilogy(norms, color=color, label=name)
    axes.set(xlabel="optimizer step", ylabel="norm of the gradient", ylim=(1e-6, None))
    axes.legend()


def ema_nesterov(figure: Figure) -> None:
    """The parameters run ahead of the slow ones and of gradient descent."""
    tx = optax.chain(optax.sgd(0.05), plp_optax.ema_nesterov(0.7, decay=0.8))
    ahead, (_, states) = follow(tx, slope, [-1.5, 2.2], 30)
    slow = ahead[1:] - 0.7 * np.asarray(states.slow_update)
    plain, _ = follow(optax.sgd(0.05), slope, [-1.5, 2.2], 30)
    axes = figure.subplots()
    contours(axes)
    axes.plot(*plain.T, ".-", color=GREY, label="gradient descent")
    axes.plot(*ahead.T, ".-", color=RED, label="parameters w, where the gradient is")
    axes.plot(*slow.T, ".-", color=BLUE, label="slow parameters x")
    for x, w in zip(slow[::3], ahead[1::3], strict=True):
        axes.plot(*np.transpose([x, w]), color="k", lw=0.8)
    axes.legend(loc="upper center")


def outer_nesterov(figure: Figure) -> None:
    """Cycles of five steps, each with a jump at its end."""
    inner = optax.sgd(0.03)
    tx = optax.chain(inner, plp_optax.outer_nesterov(0.7, momentum=0.7, period=5))
    points, _ = follow(tx, slope, [-1.5, 2.2], 40)
    plain, _ = follow(inner, slope, [-1.5, 2.2], 40)
    axes = figure.subplots()
    contours(axes)
    axes.plot(*plain.T, ".-", color=GREY, label="gradient descent, 40 steps")
    axes.plot(*points.T, "-", color=RED, lw=0.8, label="with outer Nesterov, 40 steps")
    axes.plot(*points.T, ".", color=RED)
    axes.plot(*points[::5].T, "o", color=BLUE, label="ends of cycles")
    axes.legend(loc="upper center")


def tail_average(figure: Figure) -> None:
    """The power average of noisy parameters stays near the minimum."""
    tx = optax.chain(optax.sgd(0.2), plp_optax.tail_average())
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(300, 2)))
    points, (_, states) = follow(
        tx, lambda w, i: jnp.array([0.5, 1.0]) * w + noise[i], [4.0, 2.0], 300
    )
    average = points[1:] + np.asarray(states.average_offset)
    axes = figure.subplots()
    axes.plot(*points.T, ".-", color="0.7", lw=0.8, label="parameters")
    axes.plot(*average.T, color=RED, label="average, at each step")
    axes.plot(*average[-1], "o", color=RED)
    axes.plot(0, 0, "k+", ms=12, label="minimum")
    axes.set(xlabel="first parameter", ylabel="second parameter")
    axes.legend()


def bema(figure: Figure) -> None:
    """In a slow direction the average lags behind BEMA, the corrected one."""
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(300, 1)))
    axes = figure.subplots()
    for name, link, color in (
        ("exponential average", plp_optax.bema(bias_power=None), BLUE),
        ("BEMA", plp_optax.bema(bias_power=0.4), RED),
    ):
        tx = optax.chain(optax.sgd(0.15), link)
        points, (_, states) = follow(tx, lambda w, i: 0.1 * w + noise[i], [4.0], 300)
        if color == BLUE:
            axes.plot(points, color="0.7", lw=0.8, label="parameter")
        average = jax.vmap(plp_optax.bema_params)(states, points[1:])
        axes.plot(np.arange(1, 301), average, color=color, label=name)
    axes.axhline(0, color="k", lw=0.8, label="minimum")
    axes.set(xlabel="optimizer step", ylabel="slow parameter")
    axes.legend()


def gpa(figure: Figure) -> None:
    """The average stays in the middle of the valley."""
    inner = optax.sgd(0.12)
    tx = optax.chain(inner, plp_optax.gpa(0.7, decay=0.9))
    points, (_, states) = follow(tx, slope, [-1.5, 2.2], 60)
    average = jax.vmap(plp_optax.evaluation_params)((states,), points[1:])
    plain, _ = follow(inner, slope, [-1.5, 2.2], 60)
    axes = figure.subplots()
    contours(axes)
    axes.plot(*plain.T, ".-", color=GREY, lw=0.8, label="gradient descent, 60 steps")
    axes.plot(*points.T, ".-", color=BLUE, label="parameters y, where the gradient is")
    axes.plot(*average.T, ".-", color=RED, label="average x, which is evaluated")
    axes.legend(loc="upper center")


def pace(figure: Figure) -> None:
    """With the pull, PACE, and without it: the distance from the minimum."""
    noise = jnp.asarray(np.random.default_rng(1).normal(size=(400, 50)))
    axes = figure.subplots()
    for pull, color, name in ((0.0, GREY, "AdamW"), (3.0, RED, "PACE")):
        points, states = follow(
            plp_optax.pace(0.05, pull), lambda w, i: w + noise[i], 2 * jnp.ones(50), 400
        )
        average = jax.vmap(plp_optax.evaluation_params)(states, points[1:])
        for what, path, line in (
            ("parameters", points[1:], ":"),
            ("average", average, "-"),
        ):
            distance = np.linalg.norm(path, axis=1)
            axes.semilogy(distance, line, color=color, label=f"{name}, {what}")
    axes.set(xlabel="optimizer step", ylabel="distance from the minimum")
    axes.legend()


def ekf(figure: Figure) -> None:
    """A sine is found after six samples, each seen once."""

    def model(params: Any, x: Any) -> Any:
        return params["height"] * jnp.sin(params["rate"] * x)

    params = {"height": 1.0, "rate": 1.0}
    tx = plp_optax.ekf(measurement_noise=0.01)
    state, line = tx.init(params), np.linspace(0, 3, 100)
    samples = 0.25 * np.arange(12)
    axes = figure.subplots()
    axes.plot(line, 2 * np.sin(1.5 * line), "k:", label="target")
    axes.plot(samples, 2 * np.sin(1.5 * samples), "ko", ms=4, label="samples")
    colors = {3: "0.7", 6: BLUE, 12: RED}
    update = jax.jit(tx.update)
    for i, x in enumerate(samples):
        prediction, jacobian = jax.value_and_grad(model)(params, x)
        innovation = 2 * np.sin(1.5 * x) - prediction
        updates, state = update(jacobian, state, innovation=innovation)
        params = optax.apply_updates(params, updates)
        if i + 1 in colors:
            label = f"after {i + 1} samples"
            axes.plot(line, model(params, line), color=colors[i + 1], label=label)
    axes.set(xlabel="input", ylabel="output")
    axes.legend()


def cascade(figure: Figure) -> None:
    """Each stage freezes what is trained, and adds a block and a head."""
    axes = figure.subplots()
    colors = {"frozen": "0.85", "trained": "#9ecae1", "new head": "#fdae6b"}

    def box(x: float, y: float, text: str, kind: str) -> None:
        shape = "round,pad=0.02"
        axes.add_patch(FancyBboxPatch((x, y), 0.8, 0.5, shape, fc=colors[kind]))
        axes.text(x + 0.4, y + 0.25, text, ha="center", va="center", fontsize="small")

    for stage in range(3):
        y = 2 - stage
        axes.text(-0.15, y + 0.25, f"stage {stage + 1}", ha="right", va="center")
        for i in range(stage + 1):
            kind = "trained" if i == stage else "frozen"
            box(i, y, f"block {i + 1}\n{kind}", kind)
        box(stage + 1, y, "new head", "new head")
    axes.set(xlim=(-0.8, 4), ylim=(-0.2, 2.7))
    axes.axis("off")


def noise_adaptive_rates(figure: Figure) -> None:
    """Noisy layers take smaller steps; the mean rate is 1."""
    axes = figure.subplots()
    deviations = 2.0 ** np.arange(-6, 7)
    params = {"layers": {"kernel": jnp.zeros((13, 2))}}
    signs = jnp.asarray([1.0, -1.0])
    for alpha, color in ((10.0, GREY), (1.0, BLUE), (0.1, RED)):
        tx = plp_optax.noise_adaptive_rates(
            alpha=alpha, layers=plp_optax.stacked(".*", layers="modules")
        )
        state = tx.init(params)
        for sign in signs:
            gradient = sign * jnp.asarray(deviations)[:, None] * jnp.ones((13, 2))
            _, state = tx.update({"layers": {"kernel": gradient}}, state, params)
        noise = state.layer_monitor.moments.noise
        label = f"alpha {alpha:g}"
        axes.semilogx(
            noise / noise.mean(), state.layer_rates, "o-", color=color, label=label
        )
    axes.axhline(1, color="0.8", lw=1, zorder=0)
    axes.set(
        xlabel="noise of the layer, in units of the mean",
        ylabel="rate of the layer",
    )
    axes.legend(frameon=False)


PICTURES = (
    amplify_layers,
    noise_adaptive_rates,
    anderson,
    ema_nesterov,
    outer_nesterov,
    tail_average,
    bema,
    gpa,
    pace,
    ekf,
    cascade,
)


def draw(folder: Path) -> None:
    """Draws all pictures as PNG files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    small = {"legend.fontsize": style.SMALL, "legend.frameon": False}
    for picture in PICTURES:
        title = str(picture.__doc__).partition("\n")[0].removesuffix(".")
        width = style.WIDTH if picture is amplify_layers else 6.4
        figure = style.figure(title, 3.6, width)
        with mpl.rc_context(small):
            picture(figure)
        for ax in figure.axes:
            style.dress(
                ax, xlabel=ax.get_xlabel(), ylabel=ax.get_ylabel(), title=ax.get_title()
            )
            ax.set_title("")
        figure.savefig(folder / f"{picture.__name__}.png")


if __name__ == "__main__":
    draw(Path(__file__).parent / "methods" / "pictures")
