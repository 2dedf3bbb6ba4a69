"""Test the protocol of IS_Validate: random clicks on wrong voxels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.evaluation.methods.method import DEFAULT_MODE, Prediction
from lib.evaluation.protocols import isvalidate
from tests.evaluation.simulated_methods import ScriptedMethod, make_target


def make_reference():
    """Return a block of 4 x 5 x 6 voxels in 9 x 12 x 12."""
    reference = np.zeros((9, 12, 12), bool)
    reference[2:6, 3:8, 4:10] = True
    return reference


class BadMethod:
    """Predicts random voxels, other ones after each click."""

    name, takes_masks, takes_clicks = "bad", False, True

    def open(self, frames):
        self.frames = frames

    def segment(self, annotations, mode=DEFAULT_MODE):
        count = sum(len(p.labels) for p in annotations.values())
        return Prediction(np.random.default_rng(count).random((len(self.frames), *self.frames.size)) > 0.7)


def read_clicks(step):
    """Return the clicks of a step by voxel, {(t, y, x): whether it is positive}."""
    return {(t, int(y), int(x)): bool(label) for t, p in step.annotations.items() for (x, y), label in zip(p.points, p.labels, strict=True)}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_each_click_is_on_a_voxel_that_was_wrong(seed):
    reference = make_reference()
    steps = list(isvalidate.run_steps(BadMethod(), make_target(reference), np.random.default_rng(seed), edits=8))
    assert [s.round for s in steps] == list(range(9))
    (first,) = read_clicks(steps[0])
    assert reference[first] and read_clicks(steps[0])[first]
    for before, after in zip(steps, steps[1:], strict=False):
        added = set(read_clicks(after)) - set(read_clicks(before))
        assert len(added) <= 1, "a voxel that was clicked before may be wrong again"
        for voxel in added:
            assert before.prediction.mask[voxel] != reference[voxel] and read_clicks(after)[voxel] == reference[voxel]
            assert after.last_annotated == voxel[0]


def test_all_wrong_voxels_are_equally_likely():
    """Of 120 voxels of the structure, 6000 first clicks hit each about 50 times; the standard deviation is 7."""
    reference, rng = make_reference(), np.random.default_rng(0)
    hits = np.zeros(reference.shape, int)
    for _ in range(6000):
        hits[isvalidate.choose_voxel(reference, rng)] += 1
    assert not hits[~reference].any() and hits[reference].min() > 22 and hits[reference].max() < 78


def test_a_perfect_mask_gets_no_further_click():
    reference = make_reference()
    method = ScriptedMethod(np.zeros_like(reference), reference)
    steps = list(isvalidate.run_steps(method, make_target(reference), np.random.default_rng(1), edits=8))
    assert [s.round for s in steps] == [0, 1] and len(method.requests) == 2


def test_clicks_are_repeated_with_the_same_seed_only():
    def clicks(seed):
        steps = isvalidate.run_steps(BadMethod(), make_target(make_reference()), np.random.default_rng(seed), edits=3)
        return [read_clicks(s) for s in steps]

    assert clicks(1) == clicks(1) and clicks(1) != clicks(2)


@pytest.mark.parametrize("name, tolerance_mm", [
    ("MSD01", 5), ("MSD04", 1), ("MSD09", 2.5), ("HEPATICVESSEL", 3), ("Prostate", 4), ("dev", 2.5),
])  # fmt: skip
def test_tolerance_of_a_data_set(name, tolerance_mm):
    assert isvalidate.choose_tolerance_mm(name, 2.5) == tolerance_mm
