"""Tests of the figures of benchmarks/next_slice.py on masks of one square a slice."""

import numpy as np
import pytest

from benchmarks import next_slice
from lib.quality.next_slice import STRATEGIES
from tests.quality.test_next_slice import round_state, squares


def test_regret_and_top3_compare_with_the_worst_slice_that_is_not_annotated():
    reference = squares(*[6] * 12)
    mask = squares(6, 6, 6, 6, 6, 6, 6, 6, 4, 6, 2, 6)  # Dice 0.615 on slice 8, 0.2 on slice 10
    iou = np.full(12, 0.9)
    iou[8] = 0.1
    judged = next_slice.judge_choices(round_state(mask, [0], iou=iou, reference=reference, slice_mm=5))
    rows = {r["strategy"]: r for r in judged if r["strategy"] != "random"}
    assert rows["oracle"]["regret"] == 0 and rows["oracle"]["spearman"] == pytest.approx(1)
    assert rows["estimator"]["regret"] == pytest.approx(2 * 16 / 52 - 2 * 4 / 40)
    assert rows["estimator"]["top3"] == 1 and -1 < rows["estimator"]["spearman"] < 1


def test_nothing_is_judged_when_all_slices_are_right():
    assert list(next_slice.judge_choices(round_state(squares(6, 6, 6, 6), [0], reference=squares(6, 6, 6, 6)))) == []


def test_intervals_come_from_drawing_volumes_not_states():
    rows = [{"volume": "a", "label": "x", "f": 0.0}] * 50 + [{"volume": "b", "label": "x", "f": 1.0}]
    mean, low, high = next_slice.estimate_field(rows, "f")
    assert mean == 0.5, "each label of each volume counts once"
    assert (low, high) == (0, 1), "the mean of two volumes is uncertain"
    assert np.isnan(next_slice.estimate_field([{"volume": "a", "label": "x", "f": np.nan}], "f")[0])


def test_gain_is_the_share_of_the_oracles_gain_over_the_largest_gap():
    auc = dict.fromkeys(STRATEGIES, 0.5) | {"oracle": 0.9, "estimator": 0.8}
    loops = [
        {"volume": "a", "label": "x", "strategy": s, "auc": v, "rounds_to_target": 3, "dice": [v], "better": [True, False]}
        for s, v in auc.items()
    ]  # fmt: skip
    states = [{"volume": "a", "label": "x", "strategy": s, "spearman": 0.1, "regret": 0.2, "top3": 1.0} for s in STRATEGIES]
    rows = {r["strategy"]: r for r in next_slice.summarize(states, loops)}
    assert rows["estimator"]["gain"] == pytest.approx(0.75) and rows["oracle"]["gain"] == 1 and rows["largest_gap"]["gain"] == 0
    assert rows["random"]["rounds_that_help"] == 0.5 and rows["random"]["volumes"] == 1
    assert "estimator" in next_slice.format_table(list(rows.values()))
