"""Results as results.csv, and as the papers' tables in summary.md with the published results beside the measured ones.

A row is a dict with the keys in COLUMNS: the metrics of one method on one structure after one round of one setting.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable

import numpy as np

from lib.evaluation import published_results
from lib.evaluation.protocols import dong, shen

COLUMNS = (
    "case", "label", "setting", "round", "method", "slices", "clicks", "dice", "iou", "nsd", "hd95", "slice_dice",
    "slice_iou_sum", "slice_weight", "seconds",
)  # fmt: skip
NOT_MEASURED = "not measured"
MAX_ROUNDS = 8
METHOD_NAMES = {"app": "this engine", "official": "official predictor", "builtin": "MONAI Label built-in"}


def format_csv(reports: list[dict]) -> str:
    """Return the text of results.csv, with a line for each row of all reports; cells without a value are empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for report in reports:
        for row in report["rows"]:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return buffer.getvalue()


def stack_rounds(rows: list[dict], key: str = "dice") -> np.ndarray:
    """Return a metric of N structures after 1, 2, ... rounds, float (N, MAX_ROUNDS); one that stopped early keeps its last value."""
    values_by_structure: dict[tuple, list[float]] = {}
    for r in sorted(rows, key=lambda r: r["round"]):
        values_by_structure.setdefault((r["case"], r["label"]), []).append(r[key])
    padded = [values + values[-1:] * (MAX_ROUNDS - len(values)) for values in values_by_structure.values()]
    return np.array(padded).reshape(-1, MAX_ROUNDS)


def select_last_rounds(rows: list[dict]) -> list[dict]:
    """Return the row of the last round of each structure."""
    return list({(r["case"], r["label"]): r for r in sorted(rows, key=lambda r: r["round"])}.values())


def mean_pooled_iou(rows: list[dict]) -> float:
    """Return the mean over classes of the slice IoU, pooled over all volumes of a class (Dong et al. 2024); NaN without rows."""
    classes = dict.fromkeys(r["label"] for r in rows)
    sums = [[sum(r[k] for r in rows if r["label"] == label) for k in ("slice_iou_sum", "slice_weight")] for label in classes]
    return _mean(iou_sum / weight_sum for iou_sum, weight_sum in sums)


def format_he_table(rows: list[dict], dataset_name: str) -> list[str]:
    """Return Table 1 of He et al. 2024: the mean over scans of the best Dice of up to 8 rounds, with and without background."""
    def mean_of_best(label_names: Iterable[str]) -> list[float]:
        means = []
        for setting in ("background removed", "full"):
            selected = [r for r in rows if r["setting"] == setting and _paper_name(r["label"]) in label_names]
            means.append(_mean(np.nanmax(stack_rounds(selected), 1)) if selected else float("nan"))
        return means

    columns = published_results.HE_COLUMNS
    head = ["data", "structure", *columns, "SAM 2, removed / full (published)", "removed / full (measured)"]
    table, matched = [], set()
    for row in published_results.HE_ROWS:
        names = row.labels if row.dataset == dataset_name else ()
        matched |= {n for n in names if any(_paper_name(r["label"]) == n for r in rows)}
        published = f"{_format_cell(row.background_removed)} / {_format_cell(row.full)}"
        table.append([row.dataset, row.labels[0], *map(_format_cell, row.other_methods), published, _format_pair(mean_of_best(names))])
    for label in dict.fromkeys(r["label"] for r in rows if _paper_name(r["label"]) not in matched):
        table.append([dataset_name, label, *["-"] * len(columns), "-", _format_pair(mean_of_best([_paper_name(label)]))])
    return _format_markdown(head, table)


def format_shen_table(rows: list[dict], dataset_name: str) -> list[str]:
    """Return Tables 1 and 2 of Shen et al. 2024: Dice / NSD in percent after the last click."""
    columns = list(dict.fromkeys([*published_results.SHEN_DATASETS, dataset_name]))
    head = ["method", *(published_results.SHEN_NAMES.get(c, c) for c in columns)]
    table = [[name, *(_format_cell(v, 2) for v in values)] for name, values in published_results.SHEN_INTERACTIVE.items()]
    table += [[name, *map(_format_percents, values)] for name, values in published_results.SHEN_SUPERVISED.items()]
    for setting in shen.SETTINGS:
        table.append([f"SAM 2 ({setting}), published", *map(_format_percents, published_results.SHEN[setting])])
        last = select_last_rounds([r for r in rows if r["setting"] == setting])
        measured = _format_percents(100 * _mean(r[k] for r in last) for k in ("dice", "nsd")) if last else NOT_MEASURED
        table.append([f"SAM 2 ({setting}), measured", *(measured if c == dataset_name else NOT_MEASURED for c in columns)])
    lines = _format_markdown(head, [cells + ["-"] * (len(head) - len(cells)) for cells in table])
    growth = dice_growth_per_click(rows)
    if growth:
        lines += ["", "Dice growth per added point (as in Fig. 3), in percent:", ""]
        lines += _format_markdown(["setting", *(f"point {n}" for n in range(1, shen.MAX_CLICKS + 1))],
                                  [[s, *(_format_cell(100 * v, 2) for v in values)] for s, values in growth.items()])  # fmt: skip
    return lines


def dice_growth_per_click(rows: list[dict]) -> dict[str, np.ndarray]:
    """Return for each setting with clicks by how much each click raises the mean Dice, float (MAX_CLICKS,); the first from 0."""
    growth = {}
    for setting in shen.SETTINGS:
        selected = [r for r in rows if r["setting"] == setting]
        if selected and setting.startswith("5 clicks"):
            growth[setting] = np.diff(np.nanmean(stack_rounds(selected), 0)[: shen.MAX_CLICKS], prepend=0.0)
    return growth


def format_dong_table(rows: list[dict], dataset_name: str) -> list[str]:
    """Return two tables: the IoU of each setting as in `mean_pooled_iou`, and its means over settings beside the paper's."""
    iou = {s: mean_pooled_iou([r for r in rows if r["setting"] == s]) for s in dong.ALL_SETTINGS}
    listed = [s for s in dong.ALL_SETTINGS if s in dong.SETTINGS or not math.isnan(iou[s])]
    table = [[*s.split("/"), _format_cell(iou[s], 3, NOT_MEASURED)] for s in listed]
    lines = _format_markdown(["slice", "prompt", "direction", "mask", f"IoU on {dataset_name} (measured)"], table)
    lines += ["", "Means over settings, and what the paper prints of all its data sets:", ""]
    published = published_results.DONG
    means: list[list[str]] = [["the 24 settings", _format_cell(_mean(iou[s] for s in dong.SETTINGS), 3, NOT_MEASURED),
                               _format_cell(published["mean of the 24 settings (first version)"])]]  # fmt: skip
    for n, options in enumerate((dong.SLICES[:3], ("point", "box"), dong.DIRECTIONS, dong.MASKS)):
        for option in options:
            mean = _mean(iou[s] for s in dong.SETTINGS if s.split("/")[n] == option)
            means.append([f"{('slice', 'prompt', 'direction', 'mask')[n]}: {option}", _format_cell(mean, 3, NOT_MEASURED), "-"])
    for prompt, name in (("point", "one point"), ("mask", "reference mask")):
        best = max((v for s, v in iou.items() if s.split("/")[1] == prompt and not math.isnan(v)), default=float("nan"))
        means.append([f"{name}, best setting", _format_cell(best, 3, NOT_MEASURED),
                      _format_cell(published[f"{name}, best setting (journal version)"])])  # fmt: skip
    return lines + _format_markdown(["", "measured", "published"], means)


def format_rounds_table(rows: list[dict], dataset_name: str) -> list[str]:
    """Return the mean Dice after 1, 3 and 8 rounds and the area under the curve (mean over the 8 rounds), for each structure."""
    table = []
    for label in (None, *dict.fromkeys(r["label"] for r in rows)):
        for setting in dict.fromkeys(r["setting"] for r in rows):
            curve = _format_curve([r for r in rows if r["setting"] == setting and label in (None, r["label"])])
            table.append([label or f"all of {dataset_name}", setting, *curve])
    return _format_markdown(["structure", "setting", "round 1", "round 3", "round 8", "area under the curve", "n"], table)


# For each protocol, what turns its rows and the name of the data set into the lines of a table.
PROTOCOL_TABLES: dict[str, Callable[[list[dict], str], list[str]]] = {
    "he": format_he_table, "shen": format_shen_table, "dong": format_dong_table, "rounds": format_rounds_table,
}  # fmt: skip


def format_methods_table(rows: list[dict]) -> list[str]:
    """Return a table of all methods on the same clicks: mean Dice after rounds 1, 3 and 8, and the area under the curve."""
    lines = []
    for setting in dict.fromkeys(r["setting"] for r in rows):
        table = []
        for method in dict.fromkeys(r["method"] for r in rows if r["setting"] == setting):
            selected = [r for r in rows if r["setting"] == setting and r["method"] == method]
            table.append([METHOD_NAMES.get(method, method), *_format_curve(selected)])
        head = ["method", "round 1", "round 3", "round 8", "area under the curve", "n"]
        lines += [f"{setting}:", "", *_format_markdown(head, table), ""]
    return lines


def format_structures_table(rows: list[dict]) -> list[str]:
    """Return a table of all metrics of each structure after its last round, mean over cases."""
    table = []
    for setting in dict.fromkeys(r["setting"] for r in rows):
        for label in dict.fromkeys(r["label"] for r in rows):
            last = select_last_rounds([r for r in rows if r["setting"] == setting and r["label"] == label])
            if last:
                means = [_format_cell(_mean(r[k] for r in last)) for k in ("dice", "iou", "nsd", "hd95")]
                table.append([label, setting, *means, _format_cell(_mean(r["clicks"] for r in last), 1), str(len(last))])
    return _format_markdown(["structure", "setting", "Dice", "IoU", "NSD", "HD95", "clicks", "n"], table)


def _format_curve(rows: list[dict]) -> list[str]:
    """Return the mean Dice after rounds 1, 3 and 8, its mean over all rounds, and the number of structures."""
    dice = stack_rounds(rows)
    curve = np.nanmean(dice, 0)
    return [*(_format_cell(v) for v in curve[[0, 2, 7]]), _format_cell(float(curve.mean())), str(len(dice))]


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    measured = [v for v in values if not math.isnan(v)]
    return float(np.mean(measured)) if measured else float("nan")


def _paper_name(label: str) -> str:
    """Return the name of a structure as the papers write it.

    >>> _paper_name("Kidney_right"), _paper_name("inferior vena cava")
    ('right kidney', 'inferior vena cava')
    """
    words = label.lower().replace("_", " ").split()
    if words and words[-1] in ("left", "right"):
        words = [words[-1], *words[:-1]]
    return " ".join(words)


def _format_cell(value: float | None, digits: int = 3, missing: str = "-") -> str:
    return missing if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _format_pair(values: list[float]) -> str:
    """Return "without background / full" with three digits."""
    return NOT_MEASURED if all(math.isnan(v) for v in values) else " / ".join(_format_cell(v, 3, NOT_MEASURED) for v in values)


def _format_percents(values: Iterable[float | None]) -> str:
    """Return percentages with two digits, separated by slashes."""
    return " / ".join(_format_cell(v, 2) for v in values)


def _format_markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)]
