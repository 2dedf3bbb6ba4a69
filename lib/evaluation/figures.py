"""The papers' curves as PNG."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.evaluation.protocols import shen
from lib.evaluation.tables import METHOD_NAMES, by_round, growth_per_click


def mean_and_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (R,) of values (N, R) and half the width of its 95 % confidence interval (normal; 0 for one value).

    >>> [float(x[0].round(3)) for x in mean_and_interval(np.array([[0.0], [1.0]]))]
    [0.5, 0.98]
    """
    count = np.sum(~np.isnan(values), 0)
    mean = np.nanmean(values, 0)
    deviation = np.sqrt(np.nansum((values - mean) ** 2, 0) / np.maximum(count - 1, 1))
    return mean, 1.96 * deviation / np.sqrt(np.maximum(count, 1))


def rounds_figure(rows: list[dict], path: Path) -> Path:
    """Mean Dice and 95 % interval against annotated slices, a panel for each setting, a curve for each structure (He et al. 2024,
    Fig. 2-4), or for each method where there are several."""
    settings = list(dict.fromkeys(r["setting"] for r in rows))
    methods = list(dict.fromkeys(r["method"] for r in rows))
    by = "method" if len(methods) > 1 else "label"
    figure = Figure(figsize=(5.5 * len(settings), 4))
    for n, setting in enumerate(settings):
        axes = figure.add_subplot(1, len(settings), n + 1)
        for name in dict.fromkeys(r[by] for r in rows if r["setting"] == setting):
            curves = by_round([r for r in rows if r["setting"] == setting and r[by] == name])
            _curve(axes, curves, METHOD_NAMES.get(name, name))
        _finish(axes, setting, "annotated slices", "Dice")
    return _save(figure, path)


def clicks_figure(rows: list[dict], path: Path) -> Path:
    """Dice growth per added point (Shen et al. 2024, Fig. 3), and Dice of the prompted slice after each click (Fig. 5)."""
    figure = Figure(figsize=(10, 4))
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    points = np.arange(1, shen.CLICKS + 1)
    growth = growth_per_click(rows)
    for n, (setting, values) in enumerate(growth.items()):
        left.bar(points + 0.4 * n / max(1, len(growth)), 100 * values, 0.4 / max(1, len(growth)), label=setting)
    _finish(left, "Dice growth per added point", "point", "percent", None)
    for setting in growth:
        _curve(right, by_round([r for r in rows if r["setting"] == setting], "slice_dice")[:, : shen.CLICKS], setting)
    _finish(right, "prompted slice", "clicks", "Dice")
    return _save(figure, path)


def _curve(axes: Axes, values: np.ndarray, name: str) -> None:
    mean, half = mean_and_interval(values)
    x = np.arange(1, len(mean) + 1)
    axes.plot(x, mean, marker="o", markersize=3, label=name)
    axes.fill_between(x, np.maximum(mean - half, 0), np.minimum(mean + half, 1), alpha=0.15)


def _finish(axes: Axes, title: str, x: str, y: str, limits: tuple[float, float] | None = (0, 1)) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    if limits:
        axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _save(figure: Figure, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    return path
