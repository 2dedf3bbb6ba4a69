"""Test our own protocol: which slices it chooses, how they are prompted, and which strategies need estimates."""

import numpy as np
import pytest

from lib.common.errors import OptionError
from lib.evaluation.protocols import rounds
from lib.evaluation.protocols.steps import ProtocolPlan
from tests.evaluation.simulated_methods import ScriptedMethod, make_target, mask_from_text

EMPTY = mask_from_text(*["........"] * 6)
SQUARE = mask_from_text("........", ".####...", ".####...", ".####...", ".####...", "........")
REFERENCE = np.stack([EMPTY, *[SQUARE] * 7, EMPTY, EMPTY])


def run_steps(method, *settings, strategy="oracle"):
    """Return the steps of the protocol on REFERENCE."""
    return list(rounds.run_steps(method, make_target(REFERENCE), ProtocolPlan("described", np.random.default_rng(0), settings, strategy)))


def test_boxes_round_by_round():
    """Slice 1 is the first of the largest slices; slice 7 is missed, so it is the worst; then all slices are right."""
    missed = REFERENCE.copy()
    missed[7] = False
    steps = run_steps(ScriptedMethod(missed, REFERENCE), "box")
    assert [(s.round, s.last_annotated, list(s.annotations)) for s in steps] == [(1, 1, [1]), (2, 7, [1, 7])]
    assert steps[1].annotations[7].points.tolist() == [[0.5, 0.5], [4.5, 4.5]]


def test_slices_without_the_structure_are_annotated_as_empty():
    excess = REFERENCE.copy()
    excess[9] = SQUARE
    steps = run_steps(ScriptedMethod(excess, REFERENCE), "painted")
    assert [s.last_annotated for s in steps] == [1, 9]
    assert steps[1].annotations[9].mask is not None and not steps[1].annotations[9].mask.any()


def test_clicks_are_simulated_without_propagation():
    method = ScriptedMethod(REFERENCE)
    (step,) = run_steps(method)
    assert [mode.propagate for _, mode in method.requests] == [False, True]
    assert step.setting == "3 clicks" and step.annotations[1].points.tolist() == [[2, 2]]


@pytest.mark.parametrize("strategy, words", [("estimator", "needs estimates"), ("nonsense", "Unknown strategy")])
def test_unusable_strategies_are_refused(strategy, words):
    with pytest.raises(OptionError, match=words):
        run_steps(ScriptedMethod(REFERENCE), strategy=strategy)
