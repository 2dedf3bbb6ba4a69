"""Results as results.csv, and as the papers' tables in summary.md with the published results beside the measured ones.

A row is a dict with the keys in COLUMNS: the metrics of one method on one structure after one round of one setting. Measured means have
95 % bootstrap intervals over volumes. The protocols in which each method has clicks of its own have their tables in
`lib.evaluation.interactive_tables`.
"""

import csv
import io
import math
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from lib.evaluation import published_results
from lib.evaluation.intervals import Estimate, bootstrap, estimate_mean, format_estimate
from lib.evaluation.protocols import dong, shen

COLUMNS = (
    "case", "label", "setting", "round", "method", "slices", "clicks", "dice", "iou", "nsd", "hd95", "slice_dice",
    "slice_iou_sum", "slice_weight", "seconds",
)  # fmt: skip
NOT_MEASURED = "not measured"
MAX_ROUNDS = 8
CURVE_COLUMNS = ("Dice, round 1", "round 3", "round 8", "area under the curve", "NSD, last round", "n")
METHOD_NAMES = {
    "app": "this engine", "official": "official predictor", "builtin": "MONAI Label built-in", "classical": "random walker",
    "fill": "fill between slices",
}  # fmt: skip


def format_csv(reports: list[dict]) -> str:
    """Return the text of results.csv, with a line for each row of all reports; cells without a value are empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for report in reports:
        for row in report["rows"]:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return buffer.getvalue()


def stack_curves(rows: list[dict], key: str = "dice", rounds: Sequence[int] = range(1, MAX_ROUNDS + 1)) -> tuple[np.ndarray, list[str]]:
    """Return a metric of N structures after each of R rounds, float (N, R), and the cases of the N structures.

    A structure that stopped early keeps its last value.
    """
    by_structure: dict[tuple[str, str], dict[int, float]] = {}
    for r in rows:
        by_structure.setdefault((r["case"], r["label"]), {})[r["round"]] = r[key]
    curves = [[values[min(n, max(values))] for n in rounds] for values in by_structure.values()]
    return np.array(curves, float).reshape(-1, len(rounds)), [case for case, _ in by_structure]


def estimate_last(rows: list[dict], key: str, factor: float = 1.0) -> Estimate:
    """Return the mean over structures of a metric after the last round of each, times a factor."""
    last_values = {(r["case"], r["label"]): factor * r[key] for r in sorted(rows, key=lambda r: r["round"])}
    return estimate_mean(list(last_values.values()), [case for case, _ in last_values])


def estimate_pooled_iou(rows_of_settings: Collection[list[dict]]) -> Estimate:
    """Return the mean over settings and over classes of the slice IoU, pooled over all volumes of a class (Dong et al. 2024).

    Settings without rows are left out; without any, the value is NaN.
    """
    volumes = list(dict.fromkeys(r["case"] for rows in rows_of_settings for r in rows))
    index = {volume: n for n, volume in enumerate(volumes)}
    sums_of_settings = []
    for rows in filter(None, rows_of_settings):
        sums: dict[str, np.ndarray] = {r["label"]: np.zeros((2, len(volumes))) for r in rows}
        for r in rows:
            sums[r["label"]][:, index[r["case"]]] += r["slice_iou_sum"], r["slice_weight"]
        sums_of_settings.append(list(sums.values()))

    def mean_iou(counts: np.ndarray) -> np.ndarray:
        means = []
        for classes in sums_of_settings:
            iou, weight = (np.array([counts @ sums[n] for sums in classes]) for n in (0, 1))
            has_class = weight > 0  # A resample may hold no volume of a class; its other classes count.
            means.append(np.where(has_class, iou / np.where(has_class, weight, 1), 0).sum(0) / np.maximum(has_class.sum(0), 1))
        return np.mean(means, 0)

    return bootstrap(mean_iou, len(volumes)) if sums_of_settings else Estimate(math.nan)


def format_he_table(rows: list[dict], dataset_name: str) -> list[str]:
    """Return Table 1 of He et al. 2024: the mean over scans of the best Dice of up to 8 rounds, with and without background."""
    def format_means_of_best(label_names: Iterable[str]) -> str:
        estimates = []
        for setting in ("background removed", "full"):
            selected = [r for r in rows if r["setting"] == setting and _paper_name(r["label"]) in label_names]
            dice, volumes = stack_curves(selected)
            estimates.append(estimate_mean(dice.max(1), volumes))
        return _format_pair(estimates)

    columns = published_results.HE_COLUMNS
    head = ["data", "structure", *columns, "SAM 2, removed / full (published)", "removed / full (measured)"]
    table, matched = [], set()
    for row in published_results.HE_ROWS:
        names = row.labels if row.dataset == dataset_name else ()
        matched |= {n for n in names if any(_paper_name(r["label"]) == n for r in rows)}
        published = f"{format_cell(row.background_removed)} / {format_cell(row.full)}"
        table.append([row.dataset, row.labels[0], *map(format_cell, row.other_methods), published, format_means_of_best(names)])
    for label in dict.fromkeys(r["label"] for r in rows if _paper_name(r["label"]) not in matched):
        table.append([dataset_name, label, *["-"] * len(columns), "-", format_means_of_best([_paper_name(label)])])
    return format_markdown(head, table)


def format_shen_table(rows: list[dict], dataset_name: str) -> list[str]:
    """Return Tables 1 and 2 of Shen et al. 2024: Dice / NSD in percent after the last click."""
    columns = list(dict.fromkeys([*published_results.SHEN_DATASETS, dataset_name]))
    head = ["method", *(published_results.SHEN_NAMES.get(c, c) for c in columns)]
    table = [[name, *(format_cell(v, 2) for v in values)] for name, values in published_results.SHEN_INTERACTIVE.items()]
    table += [[name, *map(_format_percents, values)] for name, values in published_results.SHEN_SUPERVISED.items()]
    for setting in shen.SETTINGS:
        table.append([f"SAM 2 ({setting}), published", *map(_format_percents, published_results.SHEN[setting])])
        selected = [r for r in rows if r["setting"] == setting]
        measured = NOT_MEASURED
        if selected:
            measured = " / ".join(format_estimate(estimate_last(selected, k, 100), 2) for k in ("dice", "nsd"))
        table.append([f"SAM 2 ({setting}), measured", *(measured if c == dataset_name else NOT_MEASURED for c in columns)])
    lines = format_markdown(head, [cells + ["-"] * (len(head) - len(cells)) for cells in table])
    if growth := estimate_growth(rows):
        lines += ["", "Dice growth per added point (as in Fig. 3), in percent:", ""]
        head = ["setting", *(f"point {n}" for n in range(1, shen.MAX_CLICKS + 1))]
        lines += format_markdown(head, [[setting, *(format_estimate(e, 2) for e in estimates)] for setting, estimates in growth.items()])
    return lines


def estimate_growth(rows: list[dict]) -> dict[str, list[Estimate]]:
    """Return for each setting with clicks by how many percent each click raises the mean Dice; the first raises it from 0."""
    growth = {}
    for setting in shen.SETTINGS:
        selected = [r for r in rows if r["setting"] == setting]
        if selected and setting.startswith("5 clicks"):
            dice, volumes = stack_curves(selected, rounds=range(1, shen.MAX_CLICKS + 1))
            growth[setting] = [estimate_mean(values, volumes) for values in 100 * np.diff(dice, prepend=0.0).T]
    return growth


def format_dong_table(rows: list[dict], dataset_name: str) -> list[str]:
    """Return two tables: IoU and NSD of each setting (see `estimate_pooled_iou`), and means over settings beside the paper's."""
    rows_of = {s: [r for r in rows if r["setting"] == s] for s in dong.ALL_SETTINGS}
    iou = {s: estimate_pooled_iou([selected]) for s, selected in rows_of.items()}
    listed = [s for s in dong.ALL_SETTINGS if s in dong.SETTINGS or rows_of[s]]
    table = [[*s.split("/"), format_estimate(iou[s], 3, NOT_MEASURED), format_estimate(estimate_last(rows_of[s], "nsd"), 3, NOT_MEASURED)]
             for s in listed]  # fmt: skip
    head = ["slice", "prompt", "direction", "mask", f"IoU on {dataset_name} (measured)", "NSD (measured)"]
    lines = format_markdown(head, table)
    lines += ["", "IoU, means over settings, and what the paper prints of all its data sets:", ""]
    published = published_results.DONG

    def format_mean(settings: Iterable[str]) -> str:
        return format_estimate(estimate_pooled_iou([rows_of[s] for s in settings]), 3, NOT_MEASURED)

    means = [["the 24 settings", format_mean(dong.SETTINGS), format_cell(published["mean of the 24 settings (first version)"])]]
    for n, options in enumerate((dong.SLICES[:3], ("point", "box"), dong.DIRECTIONS, dong.MASKS)):
        for option in options:
            mean = format_mean(s for s in dong.SETTINGS if s.split("/")[n] == option)
            means.append([f"{('slice', 'prompt', 'direction', 'mask')[n]}: {option}", mean, "-"])
    for prompt, name in (("point", "one point"), ("mask", "reference mask")):
        measured = [v for s, v in iou.items() if s.split("/")[1] == prompt and not math.isnan(v.value)]
        best = max(measured, default=Estimate(math.nan))
        means.append([f"{name}, best setting", format_estimate(best, 3, NOT_MEASURED),
                      format_cell(published[f"{name}, best setting (journal version)"])])  # fmt: skip
    return lines + format_markdown(["", "measured", "published"], means)


def format_rounds_table(rows: list[dict], dataset_name: str) -> list[str]:
    """Return the Dice after 1, 3 and 8 rounds, the area under its curve (mean over the 8 rounds), and the last NSD of structures."""
    table = []
    for label in (None, *dict.fromkeys(r["label"] for r in rows)):
        for setting in dict.fromkeys(r["setting"] for r in rows):
            curve = _format_curve([r for r in rows if r["setting"] == setting and label in (None, r["label"])])
            table.append([label or f"all of {dataset_name}", setting, *curve])
    return format_markdown(["structure", "setting", *CURVE_COLUMNS], table)


# For each protocol, what turns its rows and the name of the data set into the lines of a table.
PROTOCOL_TABLES: dict[str, Callable[[list[dict], str], list[str]]] = {
    "he": format_he_table, "shen": format_shen_table, "dong": format_dong_table, "rounds": format_rounds_table,
}  # fmt: skip


def format_methods_table(rows: list[dict]) -> list[str]:
    """Return a table of all methods on the same clicks: mean Dice after rounds 1, 3 and 8, the area under the curve, and the last NSD."""
    lines = []
    for setting in dict.fromkeys(r["setting"] for r in rows):
        table = []
        for method in dict.fromkeys(r["method"] for r in rows if r["setting"] == setting):
            selected = [r for r in rows if r["setting"] == setting and r["method"] == method]
            table.append([METHOD_NAMES.get(method, method), *_format_curve(selected)])
        lines += [f"{setting}:", "", *format_markdown(["method", *CURVE_COLUMNS], table), ""]
    return lines


def format_structures_table(rows: list[dict]) -> list[str]:
    """Return a table of all metrics of each structure after its last round, mean over cases."""
    table = []
    for setting in dict.fromkeys(r["setting"] for r in rows):
        for label in dict.fromkeys(r["label"] for r in rows):
            selected = [r for r in rows if r["setting"] == setting and r["label"] == label]
            if selected:
                means = [format_estimate(estimate_last(selected, k)) for k in ("dice", "iou", "nsd", "hd95")]
                count = len({r["case"] for r in selected})
                table.append([label, setting, *means, f"{estimate_last(selected, 'clicks').value:.1f}", str(count)])
    return format_markdown(["structure", "setting", "Dice", "IoU", "NSD", "HD95", "clicks", "n"], table)


def _format_curve(rows: list[dict]) -> list[str]:
    """Return the cells of CURVE_COLUMNS."""
    dice, volumes = stack_curves(rows)
    estimates = [estimate_mean(d, volumes) for d in (*dice.T[[0, 2, 7]], dice.mean(1))]
    return [*map(format_estimate, estimates), format_estimate(estimate_last(rows, "nsd")), str(len(dice))]


def _paper_name(label: str) -> str:
    """Return the name of a structure as the papers write it.

    >>> _paper_name("Kidney_right"), _paper_name("inferior vena cava")
    ('right kidney', 'inferior vena cava')
    """
    words = label.lower().replace("_", " ").split()
    if words and words[-1] in ("left", "right"):
        words = [words[-1], *words[:-1]]
    return " ".join(words)


def format_cell(value: float | None, digits: int = 3) -> str:
    """Return a published figure as text, "-" if the paper gives none."""
    return "-" if value is None else f"{value:.{digits}f}"


def format_markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)]


def _format_pair(estimates: list[Estimate]) -> str:
    """Return "without background / full" with three digits."""
    if all(math.isnan(e.value) for e in estimates):
        return NOT_MEASURED
    return " / ".join(format_estimate(e, 3, NOT_MEASURED) for e in estimates)


def _format_percents(values: Iterable[float | None]) -> str:
    """Return percentages with two digits, separated by slashes."""
    return " / ".join(format_cell(v, 2) for v in values)
