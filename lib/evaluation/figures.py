"""The papers' plots as PNG."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.evaluation.intervals import estimate_mean
from lib.evaluation.protocols import shen
from lib.evaluation.tables import METHOD_NAMES, estimate_growth, stack_curves


def draw_rounds(rows: list[dict], path: Path) -> Path:
    """Draw the mean Dice with its interval against the number of annotated slices (He et al. 2024, Fig. 2-4).

    Each setting has a panel, with a curve for each structure, or for each method if there are several.
    """
    settings = list(dict.fromkeys(r["setting"] for r in rows))
    methods = list(dict.fromkeys(r["method"] for r in rows))
    curve_key = "method" if len(methods) > 1 else "label"
    figure = Figure(figsize=(5.5 * len(settings), 4))
    for setting, axes in zip(settings, figure.subplots(1, len(settings), squeeze=False)[0], strict=True):
        for name in dict.fromkeys(r[curve_key] for r in rows if r["setting"] == setting):
            curves = stack_curves([r for r in rows if r["setting"] == setting and r[curve_key] == name])
            _draw_curve(axes, *curves, METHOD_NAMES.get(name, name))
        _finish_axes(axes, title=setting, xlabel="annotated slices", ylabel="Dice", ylim=(0, 1))
    return _save(figure, path)


def draw_clicks(rows: list[dict], path: Path) -> Path:
    """Draw the growth of Dice per click (Shen et al. 2024, Fig. 3), and the Dice of the prompted slice after each click (Fig. 5)."""
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    click_numbers = range(1, shen.MAX_CLICKS + 1)
    growth = estimate_growth(rows)
    width = 0.4 / max(1, len(growth))
    for n, (setting, estimates) in enumerate(growth.items()):
        left.bar([c + n * width for c in click_numbers], [e.value for e in estimates], width, label=setting)
        curves = stack_curves([r for r in rows if r["setting"] == setting], "slice_dice", click_numbers)
        _draw_curve(right, *curves, setting)
    _finish_axes(left, title="Dice growth per added point", xlabel="point", ylabel="percent")
    _finish_axes(right, title="prompted slice", xlabel="clicks", ylabel="Dice", ylim=(0, 1))
    return _save(figure, path)


def draw_interactions(rows: list[dict], rounds: int, path: Path) -> Path:
    """Draw the mean Dice and NSD of each method with their intervals after the start (0) and after each of `rounds` interactions."""
    figure = Figure(figsize=(10, 4))
    for (key, name), axes in zip((("dice", "Dice"), ("nsd", "NSD")), figure.subplots(1, 2), strict=True):
        for method in dict.fromkeys(r["method"] for r in rows):
            curves = stack_curves([r for r in rows if r["method"] == method], key, range(rounds + 1))
            _draw_curve(axes, *curves, METHOD_NAMES.get(method, method), first=0)
        _finish_axes(axes, title=name, xlabel="interactions after the first", ylabel=name, ylim=(0, 1))
    return _save(figure, path)


def _draw_curve(axes: Axes, values: np.ndarray, volumes: list[str], name: str, first: int = 1) -> None:
    """Draw the mean of values (N, R) of structures with its interval over the N volumes; the first round has the number `first`."""
    mean, low, high = np.array([estimate_mean(column, volumes) for column in values.T]).T
    x = first + np.arange(len(mean))
    axes.plot(x, mean, marker="o", markersize=3, label=name)
    axes.fill_between(x, low, high, alpha=0.15)


def _finish_axes(axes: Axes, **properties) -> None:
    """Set properties such as title and labels, and add integer ticks, a grid and a legend."""
    axes.set(**properties)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _save(figure: Figure, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    return path
