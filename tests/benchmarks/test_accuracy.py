"""Test the benchmark of accuracy on small volumes and on rows that are written by hand."""

import sys

import numpy as np
import pytest

from benchmarks import accuracy
from lib.engine.options import Options
from lib.evaluation.methods.app import AppMethod
from lib.evaluation.methods.classical import ClassicalMethod
from lib.evaluation.methods.fill import FillMethod
from lib.imaging.datasets import read_cases
from tests.evaluation.conftest import balls  # noqa: F401


@pytest.fixture(scope="module")
def app():
    return AppMethod(Options(device="cpu"))


def measure(balls, app, methods, kinds, done=frozenset()):  # noqa: F811
    """Return the rows of the first case."""
    return list(accuracy.measure(read_cases(balls)[0], "balls", app, methods, kinds, done))


def test_prompts_and_methods(balls, app):  # noqa: F811
    """Each method gets what it takes: fill only painted slices."""
    rows = measure(balls, app, [app, ClassicalMethod(), FillMethod()], list(accuracy.PROMPTS))
    engines = {kind: {r["engine"] for r in rows if r["prompt"] == kind} for kind in accuracy.PROMPTS}
    painted = {"app", "classical", "fill"}
    assert engines == {k: painted if "painted" in k else painted - {"fill"} for k in accuracy.PROMPTS}
    assert {r["label"] for r in rows} == {"large", "small"} and all(tuple(r)[:5] == accuracy.ROW_KEYS for r in rows)
    for r in rows:
        assert 0 <= r["volume_dice"] <= 1 and 0 <= r["nsd"] <= 1 and 0 < r["slice_recall"] <= 1
        assert "painted" not in r["prompt"] or r["slice_dice"] == 1, "painted slices stay as they are"
    single = [r for r in rows if r["engine"] == "fill" and r["prompt"] == "painted"]
    assert all(r["slice_recall"] == pytest.approx(1 / 5) and r["empty_fp_share"] == 0 for r in single), "one of five slices"


def test_only_missing_rows_are_measured(balls, app):  # noqa: F811
    rows = measure(balls, app, [FillMethod()], ["painted"])
    done = {tuple(r[k] for k in accuracy.ROW_KEYS) for r in rows}
    assert measure(balls, app, [FillMethod()], ["painted"], done) == []
    more = measure(balls, app, [FillMethod()], ["painted", "three_painted"], done)
    assert [r["prompt"] for r in more] == ["three_painted"] * 2


def row(case, engine, dice, data="dev", prompt="box"):
    """Return a row in which all figures are the same."""
    figures = dict.fromkeys(accuracy.FIGURES.values(), dice)
    return {"data": data, "case": case, "label": "liver", "prompt": prompt, "engine": engine, **figures, "seconds": 1.0}


def test_where_the_random_walker_is_ahead():
    """It is ahead on b only; a is equal, and c was segmented by one of the two."""
    rows = [row("a", "app", 0.5), row("a", "classical", 0.5), row("b", "app", 0.5), row("b", "classical", 0.6), row("c", "classical", 1.0)]
    assert accuracy.count_classical_ahead(rows) == (1, 2)
    text = accuracy.format_table(rows)
    assert "classical ahead of app in volume Dice: box 50 % (1 of 2)" in text
    assert "0.500 [0.500, 0.500]" in text and "0.50 / 0.50 / 0.50" in text


def test_data_sets_are_reported_alone_and_together():
    """Cases of the same name in two data sets are two volumes."""
    rows = [row("a", "app", 0.2), row("a", "app", 0.6, data="dev2")]
    lines = accuracy.format_table(rows).splitlines()
    means = [line.split()[2] for line in lines if line.startswith("box           app")]
    assert means == ["0.200", "0.600", "0.400"] and "dev and dev2" in lines
    assert sum("0.400 [0.200, 0.600]" in line for line in lines) == 1


@pytest.mark.parametrize("arguments, words", [
    (["--engines", "app,wizard"], "wizard is not known"), (["--prompts", ""], "nothing is not known"), (["--resume"], "--resume needs --json"),
])  # fmt: skip
def test_wrong_options(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--data", "x", *arguments])
    with pytest.raises(SystemExit):
        accuracy.main()
    assert words in capsys.readouterr().err


def test_means_leave_out_what_is_not_defined():
    rows = [row("a", "app", 0.5), row("b", "app", 0.5) | {"empty_fp_share": np.nan}]
    assert "nan" not in accuracy.format_table(rows)
