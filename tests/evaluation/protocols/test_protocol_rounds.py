"""Our own protocol: which slices, which prompts, and what needs estimates."""

import numpy as np
import pytest

from lib.common.errors import OptionError
from lib.evaluation.protocols import rounds
from lib.evaluation.protocols.steps import Plan
from tests.evaluation.drawing import Scripted, drawn, target_of

EMPTY = drawn(*["........"] * 6)
SQUARE = drawn("........", ".####...", ".####...", ".####...", ".####...", "........")
TRUTH = np.stack([EMPTY, *[SQUARE] * 7, EMPTY, EMPTY])


def steps(method, *settings, strategy="oracle"):
    return list(rounds.steps(method, target_of(TRUTH), Plan("described", np.random.default_rng(0), settings, strategy)))


def test_boxes_round_by_round():
    """The first of the largest slices (1); then the worst: slice 4 is missed; then all is right."""
    missed = TRUTH.copy()
    missed[7] = False
    found = steps(Scripted(missed, TRUTH), "box")
    assert [(s.round, s.shown, list(s.annotations)) for s in found] == [(1, 1, [1]), (2, 7, [1, 7])]
    assert found[1].annotations[7].points.tolist() == [[0.5, 0.5], [4.5, 4.5]]


def test_slices_without_the_structure_are_said_to_be_empty():
    excess = TRUTH.copy()
    excess[9] = SQUARE
    found = steps(Scripted(excess, TRUTH), "painted")
    assert [s.shown for s in found] == [1, 9]
    assert found[1].annotations[9].mask is not None and not found[1].annotations[9].mask.any()


def test_clicks_are_made_on_the_slice_alone():
    method = Scripted(TRUTH)
    (only,) = steps(method)
    assert [how.propagate for _, how in method.asked] == [False, True]
    assert only.setting == "3 clicks" and only.annotations[1].points.tolist() == [[2, 2]]


@pytest.mark.parametrize("strategy, words", [("estimator", "needs estimates"), ("nonsense", "Unknown strategy")])
def test_strategies_that_cannot_be(strategy, words):
    with pytest.raises(OptionError, match=words):
        steps(Scripted(TRUTH), strategy=strategy)
