"""Test tables, plots and pictures made of rows that are written by hand."""

import csv
import io

import numpy as np
import pytest

from lib.evaluation import figures, overlays, published_results, tables
from lib.evaluation.methods.method import DEFAULT_MODE, Prediction
from lib.evaluation.protocols import dong
from lib.evaluation.protocols.steps import Step
from tests.evaluation.simulated_methods import make_target, mask_from_text


def row(case="a", label="spleen", setting="full", number=1, dice=0.5, method="app", **extra):
    """Return a row of results."""
    return {"case": case, "label": label, "setting": setting, "round": number, "method": method, "slices": "3 1", "clicks": 2,
            "dice": dice, "iou": dice / 2, "nsd": dice, "hd95": 3.0, "slice_dice": dice, "seconds": 1.0} | extra  # fmt: skip


def cells(lines, *first_cells):
    """Return the cells of the first line of a table that begins with the given cells."""
    return next([c.strip() for c in line.split("|")[1:-1]] for line in lines
                if [c.strip() for c in line.split("|")[1:]][: len(first_cells)] == list(first_cells))  # fmt: skip


def test_csv():
    text = tables.format_csv([{"rows": [row(hd95=float("nan"))]}, {"rows": []}, {"rows": [row("b", slice_iou_sum=2.5, slice_weight=4.0)]}])
    table = list(csv.DictReader(io.StringIO(text)))
    assert tuple(table[0]) == tables.COLUMNS
    assert [(r["case"], r["hd95"], r["slice_weight"], r["slices"]) for r in table] == [("a", "", "", "3 1"), ("b", "3.0", "4.0", "3 1")]


def test_structures_that_stop_early_keep_their_last_value():
    dice, volumes = tables.stack_curves([row(number=1, dice=0.2), row(number=2, dice=0.6), row("b", number=1, dice=1.0)])
    assert dice.tolist() == [[0.2] + [0.6] * 7, [1.0] * 8] and volumes == ["a", "b"]


def test_he_table_has_the_best_of_the_rounds():
    rows = [row(number=n, dice=d) for n, d in ((1, 0.2), (2, 0.9), (3, 0.4))] + [row("b", dice=0.5)]
    rows += [row(setting="background removed", dice=0.8)]
    lines = tables.format_he_table(rows, "MSD09")
    assert cells(lines, "MSD09", "spleen")[-2:] == ["0.898 / 0.737", "0.800 / 0.700 [0.500, 0.900]"], "0.9 and 0.5"
    assert cells(lines, "BTCV", "spleen")[-2:] == ["0.475 / 0.308", "not measured"], "of other data"
    assert cells(lines, "MSD03", "liver")[2:4] == ["0.943", "0.947"]


def test_he_names_of_structures():
    """The Decathlon calls a tumour "cancer"; in other data the side comes last."""
    assert cells(tables.format_he_table([row(label="cancer", dice=0.25)], "MSD06"), "MSD06", "lung tumor")[-1] == "not measured / 0.250"
    lines = tables.format_he_table([row(label="kidney_right", dice=0.25)], "BTCV")
    assert cells(lines, "BTCV", "right kidney")[-1] == "not measured / 0.250"
    assert cells(tables.format_he_table([row(label="sacrum")], "mine"), "mine", "sacrum")[-2:] == ["-", "not measured / 0.500"]


def test_shen_table_shows_the_last_click_in_percent():
    rows = [row(setting="5 clicks", number=n, dice=d) for n, d in ((1, 0.2), (2, 0.5))] + [row("b", setting="5 clicks", dice=0.3)]
    lines = tables.format_shen_table(rows, "MSD09")
    assert cells(lines, "SAM 2 (5 clicks), published")[2] == "79.59 / 75.63"
    line = cells(lines, "SAM 2 (5 clicks), measured")
    measured = "40.00 [30.00, 50.00] / 40.00 [30.00, 50.00]"
    assert line == ["SAM 2 (5 clicks), measured", "not measured", measured, *["not measured"] * 3]
    assert cells(lines, "SAM 2 (1 mask), measured")[2] == "not measured"
    assert cells(tables.format_shen_table(rows, "mine"), "SAM 2 (5 clicks), measured")[-1] == measured


def test_growth_per_click():
    """The means of two structures after clicks 1 and 2 are 0.25 and 0.4; then nothing changes."""
    rows = [row(setting="5 clicks", number=n, dice=d) for n, d in ((1, 0.2), (2, 0.5))] + [row("b", setting="5 clicks", dice=0.3)]
    assert [e.value for e in tables.estimate_growth(rows)["5 clicks"]] == pytest.approx([25, 15, 0, 0, 0])


def pooled_row(setting, label, iou_sum, weight, case="a"):
    """Return a row of the protocol of Dong et al."""
    return row(case, label, setting, slice_iou_sum=iou_sum, slice_weight=weight)


def test_dong_pools_the_slices_of_a_class():
    """The liver has (1 + 3) / (2 + 8) = 0.4 and the spleen 0.8; the mean is over these two, not over cases."""
    setting = "largest/box/both/first"
    rows = [pooled_row(setting, "liver", 1.0, 2.0), pooled_row(setting, "liver", 3.0, 8.0, "b"), pooled_row(setting, "spleen", 0.8, 1.0)]
    pooled = tables.estimate_pooled_iou([rows])
    assert pooled.value == pytest.approx(0.6)
    assert (pooled.low, pooled.high) == pytest.approx((0.375, 0.65)), "only volume b: 3 / 8; only volume a: (1 / 2 + 0.8) / 2"
    lines = tables.format_dong_table(rows, "mine")
    assert cells(lines, "largest", "box", "both", "first")[-2:] == ["0.600 [0.375, 0.650]", "0.500 [0.500, 0.500]"]
    assert cells(lines, "first", "point", "forward", "first")[-2:] == ["not measured"] * 2
    assert cells(lines, "prompt: box")[1] == "0.600 [0.375, 0.650]" and cells(lines, "prompt: point")[1] == "not measured"
    assert cells(lines, "the 24 settings")[1:] == ["0.600 [0.375, 0.650]", "0.190"]


def test_pooled_iou_is_averaged_over_settings():
    rows_of_settings = [[pooled_row("a", "liver", 1.0, 2.0)], [], [pooled_row("b", "liver", 1.0, 4.0)]]
    assert tables.estimate_pooled_iou(rows_of_settings).value == pytest.approx(0.375)
    assert np.isnan(tables.estimate_pooled_iou([[], []]).value)


def test_rounds_and_methods():
    rows = [row(setting="3 clicks", number=n, dice=d) for n, d in ((1, 0.2), (2, 0.4), (3, 0.6))]
    rows += [row(setting="3 clicks", dice=0.5, method="official")]
    line = cells(tables.format_rounds_table(rows[:3], "mine"), "all of mine")
    assert line[2:] == ["0.200", "0.600", "0.600", "0.525", "0.600", "1"], "area: (0.2 + 0.4 + 6 * 0.6) / 8"
    lines = tables.format_methods_table(rows)
    assert cells(lines, "this engine")[1:] == ["0.200", "0.600", "0.600", "0.525", "0.600", "1"]
    assert cells(lines, "official predictor")[1:5] == ["0.500"] * 4


def test_metrics_of_each_structure():
    lines = tables.format_structures_table([row(dice=0.2), row(number=2, dice=0.6, hd95=float("nan")), row("b", dice=1.0)])
    expected = ["0.800 [0.600, 1.000]", "0.400 [0.300, 0.500]", "0.800 [0.600, 1.000]", "3.000", "2.0", "2"]
    assert cells(lines, "spleen") == ["spleen", "full", *expected], "HD95 has one value"


def test_published_tables_are_complete():
    """They have as many rows and columns as in the papers, and values that the papers repeat elsewhere."""
    assert len(published_results.HE_ROWS) == 25
    assert all(len(r.other_methods) == len(published_results.HE_COLUMNS) == 6 for r in published_results.HE_ROWS)
    assert next((r.background_removed, r.full) for r in published_results.HE_ROWS if r.labels[0] == "aorta") == (0.916, 0.85)
    shen_rows = (*published_results.SHEN.values(), *published_results.SHEN_SUPERVISED.values())
    assert all(len(values) == len(published_results.SHEN_DATASETS) for values in shen_rows)
    assert [d for d, _ in published_results.SHEN["1 mask, salient"]] == [87.17, 94.41, 92.33, 87.48, 61.04]


def test_plots_are_drawn(tmp_path):
    from PIL import Image

    rows = [row(label=la, setting=s, number=n, dice=0.1 * n) for la in ("spleen", "liver") for s in ("full", "5 clicks") for n in (1, 2, 3)]
    for draw in (figures.draw_rounds, figures.draw_clicks):
        assert np.asarray(Image.open(draw(rows, tmp_path / "x.png"))).std() > 10


def test_overlays_are_drawn(tmp_path):
    from PIL import Image

    square = mask_from_text("........", "..###...", "..###...", "..###...", "........")
    reference = np.stack([square & False, *[square] * 5])
    target = make_target(reference)
    extracted = []
    for name, mask in (("right", reference), ("wrong", ~reference), ("empty", reference & False)):
        extracted.append(overlays.extract_overlay(name, Step("full", 1, target, {}, DEFAULT_MODE, Prediction(mask), 1)))
    assert [s["dice"] for s in extracted] == [1.0, 0.0, 0.0]
    overlays.draw_overlays(extracted, tmp_path / "slices.png")
    image = np.asarray(Image.open(tmp_path / "slices.png").convert("RGB")).astype(int)
    green = (image[..., 1] > 200) & (image[..., 0] < 80)
    orange = (image[..., 0] > 200) & (abs(image[..., 1] - 165) < 30) & (image[..., 2] < 80)
    assert green.any() and orange.any()


def test_settings_of_tables_are_those_of_the_protocols():
    assert set(published_results.SHEN) == set(tables.shen.SETTINGS) and len(dong.SETTINGS) == 24
