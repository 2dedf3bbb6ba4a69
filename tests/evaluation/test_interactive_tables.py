"""Test the tables of the protocols with clicks of each method's own, on rows that are written by hand."""

import numpy as np
import pytest

from lib.evaluation import interactive_tables as tables
from lib.evaluation import report
from lib.evaluation.case_evaluation import EvaluationSettings
from tests.evaluation.test_tables import cells


def make_rows(dice, nsd=None, case="a", label="liver", method="app", seconds=1.0):
    """Return the rows of one structure, with one round for each value of Dice."""
    return [
        {"case": case, "label": label, "setting": "x", "round": n, "method": method, "slices": "1", "clicks": n, "dice": d,
         "nsd": d if nsd is None else nsd[n], "seconds": seconds}
        for n, d in enumerate(dice)
    ]  # fmt: skip


def test_figures_of_the_challenge():
    """The area is over the five click steps: (0.4 + 0.8) / 2 + 0.5 + 0.6 + 0.7 = 2.4; the box step does not count."""
    cases = tables.collect_challenge_cases(make_rows([0.9, 0.4, 0.5, 0.6, 0.7, 0.8], [0.1, 1, 1, 1, 1, 1]))
    assert cases["a"].figures == pytest.approx((2.4, 4.0, 0.8, 1.0))
    assert tables.collect_challenge_cases(make_rows([0] + [1] * 5))["a"].figures == pytest.approx((4, 4, 1, 1)), "the maximum"


def test_classes_are_averaged_before_the_nsd_is_set_to_zero():
    """The mean Dice is 0.1, 0.2 (not above the limit), then 0.3: the NSD counts in the last steps only, also for a class with Dice 0."""
    first = make_rows([0.2, 0.4, 0.6, 0.6, 0.6, 0.6], [0.8] * 6, label="liver")
    second = make_rows([0.0] * 6, [0.4] * 6, label="spleen")
    case = tables.collect_challenge_cases(first + second)["a"]
    assert case.dsc.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3, 0.3]) and case.class_count == 2
    assert case.nsd.tolist() == pytest.approx([0, 0, 0.6, 0.6, 0.6, 0.6])


@pytest.mark.parametrize("seconds, is_over", [(15.0, False), (15.1, True)])
def test_time_limit(seconds, is_over):
    """Two classes have 180 s for all six steps together, that is 15 s each a step."""
    rows = make_rows([0.5] * 6, seconds=seconds) + make_rows([0.5] * 6, label="spleen", seconds=seconds)
    case = tables.collect_challenge_cases(rows)["a"]
    assert case.is_over_limit == is_over and case.seconds.tolist() == pytest.approx([2 * seconds] * 6)


def test_challenge_tables():
    """Volumes a and b have areas of 2 and 4; the random walker has only volume a."""
    rows = make_rows([0.5] * 6) + make_rows([1] * 6, case="b", seconds=100.0) + make_rows([0.25] * 6, method="classical", seconds=0.5)
    lines = tables.format_challenge_tables(rows, "mine")
    area, final = "3.000 [2.000, 4.000]", "0.750 [0.500, 1.000]"
    assert cells(lines, "this engine") == ["this engine", area, area, final, final, "50.50", "100.00", "1 of 2", "2"]
    assert cells(lines, "random walker") == ["random walker", "1.000", "1.000", "0.250", "0.250", "0.50", "0.50", "0 of 1", "1"]
    assert cells(lines, "nnInteractive, fine-tuned, published (hidden test set)")[1:5] == ["2.480", "2.567", "0.639", "0.661"]
    curve = lines[lines.index("NSD after each step, mean over classes, then over volumes:") :]
    assert cells(curve, "this engine")[1:] == [final] * 6
    assert cells(lines, "liver") == ["liver", f"{final} / {final}", "0.250 / 0.250", "2"]


def test_steps_in_which_nothing_was_segmented_take_no_time():
    rows = make_rows([0.5, 1, 1, 1, 1, 1])
    for r in rows[2:]:
        r["seconds"] = 0.0
    rows[0]["seconds"] = 3.0
    assert cells(tables.format_challenge_tables(rows, "mine"), "this engine")[5:7] == ["2.00", "2.90"]


def test_area_and_number_of_interactions():
    scores = np.array([0.0, 0.8, 0.85, 0.86, 0.9])
    assert tables.normalized_auc(scores) == pytest.approx((0 / 2 + 0.8 + 0.85 + 0.86 + 0.9 / 2) / 4)
    assert [tables.count_interactions(scores, t) for t in tables.NOI_THRESHOLDS] == [2, 3, 5], "above, not equal; 5 is failure"
    assert tables.count_interactions(np.array([0.95, 0.2]), 0.9) == 0, "right after the first click"
    assert tables.normalized_auc(np.ones(5)) == 1.0


def test_edits_tables():
    """With 4 edits, the first structure fails at 0.9; the second one is perfect after one edit and keeps its scores."""
    rows = make_rows([0.0, 0.81, 0.81, 0.87, 0.87], seconds=2.0) + make_rows([0.2, 1.0], case="b")
    lines = tables.format_edits_tables(rows, "mine", 4)
    head = next(line for line in lines if line.startswith("| method"))
    assert "Dice nAUC@4 | NSD nAUC@4" in head and "NoI > 0.85 (failed)" in head
    line = cells(lines, "this engine")
    area = (0.81 + 0.81 + 0.87 + 0.435) / 4, (0.1 + 3.5) / 4
    assert line[1] == line[2] == f"{np.mean(area):.3f} [{area[0]:.3f}, {area[1]:.3f}]"
    assert line[3] == "0.935 [0.870, 1.000]" and line[5:8] == ["1.0 [1.0, 1.0] (0 %)", "2.0 [1.0, 3.0] (0 %)", "3.0 [1.0, 5.0] (50 %)"]
    assert line[8:] == ["2.00", "2.00", "2"]
    curve = lines[lines.index("Dice after so many edits, mean over structures:") :]
    middle = "0.905 [0.810, 1.000]"
    assert cells(curve, "this engine")[1:] == ["0.100 [0.000, 0.200]", middle, middle, "0.935 [0.870, 1.000]"]
    assert cells(lines, "liver") == ["liver", "0.935 [0.870, 1.000] / 0.935 [0.870, 1.000]", "2"]


def test_long_runs_show_twenty_edits_as_well():
    lines = tables.format_edits_tables(make_rows([0.5] * 21 + [1.0] * 80), "mine", 100)
    line = cells(lines, "this engine")
    assert line[1] == "0.500" and line[3] == f"{(0.5 * 20 + 0.75 + 79) / 100:.3f}" and line[7] == "21.0 (0 %)"


@pytest.mark.parametrize("protocol, words", [
    ("cvpr25", ("challenge of CVPR 2025, on mine", "DSC_AUC", "Left out", "fill between slices", "each is clicked by its own errors")),
    ("isvalidate", ("random clicks (IS_Validate), on mine", "nAUC@20", "7 mm")),
])  # fmt: skip
def test_report(tmp_path, protocol, words):
    methods = ("app", "fill") if protocol == "cvpr25" else ("app",)
    settings = EvaluationSettings(protocol, methods=methods, tolerance_mm=7.0)
    path = report.write_report(tmp_path, settings, "mine", [{"case": "a", "rows": make_rows([0.5] * 6), "seconds": 1.0}])
    text = path.read_text()
    assert all(w in text for w in words), text
    assert (tmp_path / "curves.png").is_file() and (tmp_path / "results.csv").read_text().count("\n") == 7
