"""The tables of the protocols in which each method is clicked by its own errors: "cvpr25" and "isvalidate".

A row is one method on one structure after one step, see `lib.evaluation.tables`. Round 0 is the step before the first correction.
"""

from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

from lib.evaluation import published_results
from lib.evaluation.intervals import estimate_mean, format_estimate
from lib.evaluation.protocols import cvpr25
from lib.evaluation.tables import METHOD_NAMES, estimate_last, format_cell, format_markdown, stack_curves

MIN_DSC_FOR_NSD = 0.2  # The challenge sets the NSD of a case to 0 where its mean Dice is not above this.
NOI_THRESHOLDS = (0.80, 0.85, 0.90)
SHORT_RUN = 20  # Number of edits for which the nAUC is reported beside that of all edits.
LISTED_EDITS = (0, 1, 2, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True, eq=False)
class ChallengeCase:
    """The results of one case of "cvpr25". Arrays have one value for each step, the box first.

    Attributes:
        dsc, nsd: Means over the classes of Dice and of the surface Dice, float (6,).
        seconds: Sums over the classes, float (6,).
        class_count: Number of classes.
    """

    dsc: np.ndarray
    nsd: np.ndarray
    seconds: np.ndarray
    class_count: int

    @property
    def figures(self) -> tuple[float, float, float, float]:
        """DSC_AUC and NSD_AUC, the areas over the click steps (at most 4.0), and the values after the last click."""
        return float(trapezoid(self.dsc[1:])), float(trapezoid(self.nsd[1:])), float(self.dsc[-1]), float(self.nsd[-1])

    @property
    def is_over_limit(self) -> bool:
        """Whether all steps together took longer than the challenge allows."""
        return bool(self.seconds.sum() > cvpr25.SECONDS_PER_CLASS * self.class_count)


def collect_challenge_cases(rows: list[dict]) -> dict[str, ChallengeCase]:
    """Return the results of each case from the rows of one method."""
    rounds = range(cvpr25.CLICK_STEPS + 1)
    (dsc, volumes), (nsd, _), (seconds, _) = (stack_curves(rows, key, rounds) for key in ("dice", "nsd", "seconds"))
    cases = {}
    for case in dict.fromkeys(volumes):
        is_class = np.array(volumes) == case
        mean_dsc = dsc[is_class].mean(0)
        mean_nsd = np.where(mean_dsc > MIN_DSC_FOR_NSD, nsd[is_class].mean(0), 0.0)
        cases[case] = ChallengeCase(mean_dsc, mean_nsd, seconds[is_class].sum(0), int(is_class.sum()))
    return cases


def normalized_auc(scores: np.ndarray) -> float:
    """Return the area under the scores (n + 1,) of rounds 0 to n, divided by n: from 0 to 1.

    >>> normalized_auc(np.array([0.0, 1.0, 1.0]))
    0.75
    """
    return float(trapezoid(scores) / (len(scores) - 1))


def count_interactions(scores: np.ndarray, threshold: float) -> int:
    """Return the first round 0 to n whose score is above the threshold, or n + 1 if there is none (NoI).

    >>> count_interactions(np.array([0.5, 0.8, 0.9]), 0.8), count_interactions(np.array([0.5, 0.8, 0.9]), 0.9)
    (2, 3)
    """
    above = np.flatnonzero(scores > threshold)
    return int(above[0]) if len(above) else len(scores)


def format_challenge_tables(rows: list[dict], dataset_name: str) -> list[str]:
    """Return the tables of "cvpr25": the figures of the challenge, the curves over the steps, and the final values of structures."""
    cases_by_method = {m: collect_challenge_cases(method_rows) for m, method_rows in _rows_by_method(rows).items()}
    table = []
    for method, cases in cases_by_method.items():
        figures = np.array([case.figures for case in cases.values()])
        over = sum(case.is_over_limit for case in cases.values())
        seconds = np.concatenate([case.seconds for case in cases.values()])
        cells = *_format_means(figures, list(cases)), *_percentiles(seconds), f"{over} of {len(cases)}", str(len(cases))
        table.append([_method_name(method), *cells])
    for name, values in published_results.CVPR25.items():
        table.append([f"{name}, published (hidden test set)", *(format_cell(v) for v in values), *["-"] * 4])
    head = ["method", "DSC_AUC", "NSD_AUC", "DSC_Final", "NSD_Final", "s per step, p50", "p95", "over the time limit", "volumes"]
    lines = [f"Figures of the challenge on {dataset_name}:", "", *format_markdown(head, table)]
    head = ["method", "box", *(f"{n} click{'s' * (n > 1)}" for n in range(1, cvpr25.CLICK_STEPS + 1))]
    for name, key in (("Dice", "dsc"), ("NSD", "nsd")):
        table = [[_method_name(m), *_format_means(np.array([getattr(case, key) for case in cases.values()]), list(cases))]
                 for m, cases in cases_by_method.items()]  # fmt: skip
        lines += ["", f"{name} after each step, mean over classes, then over volumes:", "", *format_markdown(head, table)]
    return lines + format_structures(rows)


def format_edits_tables(rows: list[dict], dataset_name: str, edits: int) -> list[str]:
    """Return the tables of "isvalidate": nAUC, final values, NoI and failures, the curves, and the final values of structures."""
    ranges = sorted({min(SHORT_RUN, edits), edits})
    listed = [n for n in LISTED_EDITS if n <= edits]
    table: list[list[str]] = []
    curve_tables: dict[str, list[list[str]]] = {"dice": [], "nsd": []}
    for method, method_rows in _rows_by_method(rows).items():
        stacks, volumes = {}, []
        for key in curve_tables:
            stacks[key], volumes = stack_curves(method_rows, key, range(edits + 1))
        figures = [[normalized_auc(scores[: n + 1]) for scores in stacks[key]] for n in ranges for key in stacks]
        figures += [stack[:, -1] for stack in stacks.values()]
        cells = _format_means(np.array(figures).T, volumes)
        for threshold in NOI_THRESHOLDS:
            counts = [count_interactions(scores, threshold) for scores in stacks["dice"]]
            failed = np.mean([n > edits for n in counts])
            cells.append(f"{format_estimate(estimate_mean(counts, volumes), 1)} ({100 * failed:.0f} %)")
        seconds = np.array([r["seconds"] for r in method_rows])
        table.append([_method_name(method), *cells, *_percentiles(seconds), str(len(volumes))])
        for key, stack in stacks.items():
            curve_tables[key].append([_method_name(method), *_format_means(stack[:, listed], volumes)])
    head = ["method", *(f"{name} nAUC@{n}" for n in ranges for name in ("Dice", "NSD")), "final Dice", "final NSD"]
    head += [f"NoI > {threshold:.2f} (failed)" for threshold in NOI_THRESHOLDS] + ["s per step, p50", "p95", "structures"]
    lines = [f"Random clicks on {dataset_name}:", "", *format_markdown(head, table)]
    for name, curve_table in zip(("Dice", "NSD"), curve_tables.values(), strict=True):
        lines += ["", f"{name} after so many edits, mean over structures:", ""]
        lines += format_markdown(["method", *map(str, listed)], curve_table)
    return lines + format_structures(rows)


def format_structures(rows: list[dict]) -> list[str]:
    """Return a table of Dice / NSD of each name of structure and method after the last round; no NSD is set to 0."""
    methods = _rows_by_method(rows)
    table = []
    for label in dict.fromkeys(r["label"] for r in rows):
        rows_of = {m: [r for r in method_rows if r["label"] == label] for m, method_rows in methods.items()}
        cells = [" / ".join(format_estimate(estimate_last(selected, key)) for key in ("dice", "nsd")) for selected in rows_of.values()]
        table.append([label, *cells, str(max(len({r["case"] for r in selected}) for selected in rows_of.values()))])
    head = ["structure", *(_method_name(m) for m in methods), "volumes"]
    return ["", "Dice / NSD of each structure after the last step:", "", *format_markdown(head, table)]


def _format_means(values: np.ndarray, volumes: list[str]) -> list[str]:
    """Return the mean of each column of values (N, C) with its interval, as text; `volumes` are those of the N rows."""
    return [format_estimate(estimate_mean(column.tolist(), volumes)) for column in values.T]


def _rows_by_method(rows: list[dict]) -> dict[str, list[dict]]:
    methods = dict.fromkeys(r["method"] for r in rows)
    return {m: [r for r in rows if r["method"] == m] for m in methods}


def _percentiles(seconds: np.ndarray) -> list[str]:
    """Return the median and the 95th percentile of seconds, as text; steps in which nothing was segmented are left out."""
    taken = seconds[seconds > 0]
    return [f"{v:.2f}" for v in np.percentile(taken, [50, 95])] if len(taken) else ["-", "-"]


def _method_name(method: str) -> str:
    return METHOD_NAMES.get(method, method)
