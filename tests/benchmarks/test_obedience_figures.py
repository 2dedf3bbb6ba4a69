"""Tests of the figures of benchmarks/obedience.py on small masks."""

import numpy as np
import pytest

from benchmarks import obedience


def test_a_click_is_obeyed_if_all_pixels_round_it_are_on_its_side():
    mask = np.zeros((6, 6), bool)
    mask[:3, :3] = True
    assert obedience.is_obeyed(mask, 1, 1, True) and obedience.is_obeyed(mask, 0, 0, True) and obedience.is_obeyed(mask, 5, 5, False)
    assert not obedience.is_obeyed(mask, 2, 2, True) and not obedience.is_obeyed(mask, 3, 3, False)


def test_boxes_are_compared_by_their_area():
    reference, mask = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    reference[2:6, 2:6] = True
    mask[[2, 5], [2, 3]] = True
    assert obedience.box_iou(mask, reference) == pytest.approx(8 / 16) and obedience.box_iou(mask & False, reference) == 0


def test_figures_are_shares_of_all_clicks_and_their_intervals_come_from_cases():
    row = {"obeyed": 8, "clicks": 10, "worse": 1, "further_clicks": 4, "box_filled": True, "dice5": 0.5, "dice10": 0.6, "box_dice": 0.7}
    other = row | {"obeyed": 30, "clicks": 30, "worse": 0, "further_clicks": 6, "box_filled": False}
    rows = [row | {"case": "a"}, other | {"case": "b"}]
    figures = obedience.summarize(rows)
    assert figures["obeyed"].value == pytest.approx(38 / 40) and figures["box_filled"].value == 0.5
    assert figures["worse"] == pytest.approx((0.1, 0, 0.25)), "all clicks, those of case b alone, those of case a alone"
    assert "2 structures of 2 cases" in obedience.format_table(rows)
