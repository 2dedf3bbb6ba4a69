"""Rows of figures as results.csv, and as the papers' tables in summary.md, the published figures beside the measured."""

import csv
import io
import math
from collections.abc import Callable, Iterable

import numpy as np

from lib.evaluation import published_figures
from lib.evaluation.protocols import dong, shen

COLUMNS = (
    "case", "label", "setting", "round", "method", "slices", "clicks", "dice", "iou", "nsd", "hd95", "slice_dice",
    "slice_iou_sum", "slice_weight", "seconds",
)  # fmt: skip
MISSING = "not measured"
ROUNDS = 8
METHOD_NAMES = {"app": "this engine", "official": "official predictor", "builtin": "MONAI Label built-in"}


def to_csv(reports: list[dict]) -> str:
    """One row for each case, structure, setting, round and method; cells without a value are empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for report in reports:
        for row in report["rows"]:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return buffer.getvalue()


def by_round(rows: list[dict], key: str = "dice") -> np.ndarray:
    """Figures (N, ROUNDS) of N structures after 1, 2, ... rounds; one that stopped early keeps its last."""
    groups: dict[tuple, dict[int, float]] = {}
    for r in rows:
        groups.setdefault((r["case"], r["label"]), {})[r["round"]] = r[key]
    out = np.full((len(groups), ROUNDS), np.nan)
    for n, found in enumerate(groups.values()):
        for r in range(1, ROUNDS + 1):
            out[n, r - 1] = found.get(r, out[n, r - 2] if r > 1 else np.nan)
    return out


def last_round(rows: list[dict]) -> list[dict]:
    """The row of the last round of each structure."""
    last: dict[tuple, dict] = {}
    for r in rows:
        key = (r["case"], r["label"])
        if key not in last or r["round"] > last[key]["round"]:
            last[key] = r
    return list(last.values())


def pooled_iou(rows: list[dict]) -> float:
    """Mean over classes of the slice IoU pooled over all volumes of a class (Dong et al. 2024); NaN without rows."""
    classes = dict.fromkeys(r["label"] for r in rows)
    means = [_share([r for r in rows if r["label"] == label]) for label in classes]
    return float(np.mean(means)) if means else float("nan")


def he_table(rows: list[dict], data: str) -> list[str]:
    """Table 1 of He et al. 2024: the best of up to 8 Dice of a scan, averaged; with and without background removal."""
    def best(label_names: Iterable[str], setting: str) -> float:
        names = {n.lower() for n in label_names}
        chosen = [r for r in rows if r["setting"] == setting and _plain(r["label"]) in names]
        return _mean(np.nanmax(by_round(chosen), 1)) if chosen else float("nan")

    head = ["data", "structure", *published_figures.HE_COLUMNS, "SAM 2, removed / full (published)", "removed / full (measured)"]
    table, matched = [], set()
    for row in published_figures.HE:
        names = row.labels if row.data == data else ()
        found = [best(names, s) for s in ("background removed", "full")]
        matched |= {n for n in names if any(_plain(r["label"]) == n for r in rows)}
        table.append([row.data, row.labels[0], *map(_cell, row.others), f"{_cell(row.removed)} / {_cell(row.full)}", _pair(found)])
    for label in dict.fromkeys(r["label"] for r in rows if _plain(r["label"]) not in matched):
        found = [best([_plain(label)], s) for s in ("background removed", "full")]
        table.append([data, label, *["-"] * len(published_figures.HE_COLUMNS), "-", _pair(found)])
    return _markdown(head, table)


def shen_table(rows: list[dict], data: str) -> list[str]:
    """Tables 1 and 2 of Shen et al. 2024: Dice / NSD in percent after the last click."""
    columns = [*published_figures.SHEN_DATA, *([] if data in published_figures.SHEN_DATA else [data])]
    head = ["method", *(published_figures.SHEN_NAMES.get(c, c) for c in columns)]
    table = [[name, *(_percent(v) for v in values)] for name, values in published_figures.SHEN_INTERACTIVE.items()]
    table += [[name, *(_percents(v) for v in values)] for name, values in published_figures.SHEN_SUPERVISED.items()]
    for setting in shen.SETTINGS:
        table.append([f"SAM 2 ({setting}), published", *(_percents(v) for v in published_figures.SHEN[setting])])
        chosen = last_round([r for r in rows if r["setting"] == setting])
        measured = [_percents([100 * _mean(r[k] for r in chosen) for k in ("dice", "nsd")]) if c == data and chosen else MISSING
                    for c in columns]  # fmt: skip
        table.append([f"SAM 2 ({setting}), measured", *measured])
    width = len(head)
    lines = _markdown(head, [r + ["-"] * (width - len(r)) for r in table])
    growth = growth_per_click(rows)
    if growth:
        lines += ["", "Dice growth per added point (as in Fig. 3), in percent:", ""]
        lines += _markdown(["setting", *(f"point {n}" for n in range(1, shen.CLICKS + 1))],
                           [[s, *(_cell(100 * g, 2) for g in v)] for s, v in growth.items()])  # fmt: skip
    return lines


def growth_per_click(rows: list[dict]) -> dict[str, np.ndarray]:
    """Of each setting with clicks, by how much the mean Dice grows with click 1, 2, ... (the first from 0)."""
    out = {}
    for setting in shen.SETTINGS:
        chosen = [r for r in rows if r["setting"] == setting]
        if chosen and setting.startswith("5 clicks"):
            out[setting] = np.diff(np.nanmean(by_round(chosen), 0)[: shen.CLICKS], prepend=0.0)
    return out


def dong_table(rows: list[dict], data: str) -> list[str]:
    """IoU of each setting, pooled over the slices with foreground of a class, mean over classes."""
    figures = {s: pooled_iou([r for r in rows if r["setting"] == s]) for s in dong.ALL}
    table = [[*s.split("/"), _cell(figures[s], 3, MISSING)] for s in dong.ALL if s in dong.SETTINGS or not math.isnan(figures[s])]
    lines = _markdown(["slice", "prompt", "direction", "mask", f"IoU on {data} (measured)"], table)
    lines += ["", "Means over settings, and what the paper prints of all its data sets:", ""]
    means: list[list[str]] = [["the 24 settings", _cell(_mean(figures[s] for s in dong.SETTINGS), 3, MISSING),
                               _cell(published_figures.DONG["mean of the 24 settings (first version)"])]]  # fmt: skip
    for n, options in enumerate((dong.SLICES[:3], ("point", "box"), dong.DIRECTIONS, dong.MASKS)):
        for option in options:
            chosen = [figures[s] for s in dong.SETTINGS if s.split("/")[n] == option]
            means.append([f"{('slice', 'prompt', 'direction', 'mask')[n]}: {option}", _cell(_mean(chosen), 3, MISSING), "-"])
    for kind in ("point", "mask"):
        best = [v for s, v in figures.items() if s.split("/")[1] == kind and not math.isnan(v)]
        name = "one point" if kind == "point" else "reference mask"
        means.append([f"{name}, best setting", _cell(max(best, default=float("nan")), 3, MISSING),
                      _cell(published_figures.DONG[f"{name}, best setting (journal version)"])])  # fmt: skip
    return lines + _markdown(["", "measured", "published"], means)


def rounds_table(rows: list[dict], data: str) -> list[str]:
    """Mean Dice after 1, 3 and 8 rounds and the area under the curve (mean over the 8 rounds), each structure."""
    lines = _markdown(
        ["structure", "setting", "round 1", "round 3", "round 8", "area under the curve", "n"],
        [
            [label, setting, *(_cell(v) for v in curve[[0, 2, 7]]), _cell(float(curve.mean())), str(n)]
            for label in (None, *dict.fromkeys(r["label"] for r in rows))
            for setting in dict.fromkeys(r["setting"] for r in rows)
            for curve, n in [_curve([r for r in rows if r["setting"] == setting and label in (None, r["label"])])]
            for label in [label or f"all of {data}"]
        ],
    )  # fmt: skip
    return lines


TABLES: dict[str, Callable[[list[dict], str], list[str]]] = {
    "he": he_table, "shen": shen_table, "dong": dong_table, "rounds": rounds_table,
}  # fmt: skip


def compare_table(rows: list[dict]) -> list[str]:
    """All methods on the same clicks: mean Dice after rounds 1, 3 and 8, and the area under the curve."""
    lines = []
    for setting in dict.fromkeys(r["setting"] for r in rows):
        table = []
        for method in dict.fromkeys(r["method"] for r in rows if r["setting"] == setting):
            curve, n = _curve([r for r in rows if r["setting"] == setting and r["method"] == method])
            table.append([METHOD_NAMES.get(method, method), *(_cell(v) for v in curve[[0, 2, 7]]), _cell(float(curve.mean())), str(n)])
        lines += [f"{setting}:", "", *_markdown(["method", "round 1", "round 3", "round 8", "area under the curve", "n"], table), ""]
    return lines


def structures_table(rows: list[dict]) -> list[str]:
    """All metrics of each structure after its last round, mean over cases."""
    table = []
    for setting in dict.fromkeys(r["setting"] for r in rows):
        for label in dict.fromkeys(r["label"] for r in rows):
            last = last_round([r for r in rows if r["setting"] == setting and r["label"] == label])
            if last:
                means = [_cell(_mean(r[k] for r in last)) for k in ("dice", "iou", "nsd", "hd95")]
                table.append([label, setting, *means, _cell(_mean(r["clicks"] for r in last), 1), str(len(last))])
    return _markdown(["structure", "setting", "Dice", "IoU", "NSD", "HD95", "clicks", "n"], table)


def _curve(rows: list[dict]) -> tuple[np.ndarray, int]:
    """Mean Dice (ROUNDS,) and of how many structures."""
    found = by_round(rows)
    return np.nanmean(found, 0), len(found)


def _share(rows: list[dict]) -> float:
    return sum(r["slice_iou_sum"] for r in rows) / sum(r["slice_weight"] for r in rows)


def _mean(values: Iterable[float]) -> float:
    """Of those that are known; NaN if none is."""
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _plain(label: str) -> str:
    """A structure's name as the papers write it.

    >>> _plain("Kidney_right"), _plain("inferior vena cava")
    ('right kidney', 'inferior vena cava')
    """
    words = label.lower().replace("_", " ").split()
    if words and words[-1] in ("left", "right"):
        words = [words[-1], *words[:-1]]
    return " ".join(words)


def _cell(value: float | None, digits: int = 3, missing: str = "-") -> str:
    return missing if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _pair(values: list[float]) -> str:
    return MISSING if all(math.isnan(v) for v in values) else " / ".join(_cell(v, 3, MISSING) for v in values)


def _percent(value: float | None) -> str:
    return _cell(value, 2)


def _percents(values: Iterable[float | None]) -> str:
    return " / ".join(_percent(v) for v in values)


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)]
