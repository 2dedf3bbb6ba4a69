"""Scores of two passes, step by step: one whose image stays as it was, one whose object is gone from slice 3 on. And single steps."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lib.model.features import THUMBNAIL_SIDE
from lib.propagation.object_end import ObjectEndDetector, Step, is_still_there, presence_logit

LOGITS = torch.full((THUMBNAIL_SIDE, THUMBNAIL_SIDE), -5.0)
LOGITS[20:40, 20:40] = 5


def features():
    images = torch.full((8, THUMBNAIL_SIDE, THUMBNAIL_SIDE), 50, dtype=torch.uint8)
    images[:3, 20:40, 20:40] = 200
    valid = torch.ones(THUMBNAIL_SIDE, THUMBNAIL_SIDE, dtype=torch.bool)
    return SimpleNamespace(device="cpu", thumbnails=images, thumbnail_valid=valid)


def is_present(score_drop, appearance_gain, scores, slices=(2, 5)):
    """Return for each pass whether the object counts as present at these scores, after scores of 4.0 beside the annotated slice."""
    detector = ObjectEndDetector(features(), score_drop, appearance_gain, [(0, LOGITS), (0, LOGITS)])
    for step in (1, 2):
        assert detector.score_adjustment(step, list(slices)) is None
        detector.observe(step, torch.tensor([4.0, 4.0]))
    adjust = detector.score_adjustment(3, list(slices))
    return [s > 0 for s in adjust(torch.tensor(scores), LOGITS.expand(2, -1, -1)).tolist()]


def test_a_score_may_fall_by_the_score_drop():
    assert is_present(2.0, 0.0, [2.5, 1.5]) == [True, False]


def test_it_may_fall_further_where_the_mask_looks_alike():
    assert is_present(1.0, 3.0, [1.5, 1.5]) == [True, False]  # the image shows the object on slice 2, not on slice 5


def test_a_negative_score_is_always_absent():
    assert is_present(9.0, 9.0, [-0.5, 0.5]) == [False, True]


def test_official_networks_are_not_judged():
    detector = ObjectEndDetector(features(), 0.0, 0.0, [(0, LOGITS)])
    assert detector.score_adjustment(7, [3]) is None


def test_passes_that_ended_are_left_out():
    detector = ObjectEndDetector(features(), 2.0, 0.0, [(0, LOGITS), (0, LOGITS)])
    for step in (1, 2):
        detector.observe(step, torch.tensor([8.0, 4.0]))
    detector = detector.select([1])
    assert detector.score_adjustment(3, [4])(torch.tensor([3.0]), LOGITS[None]).tolist() == [1.0]


# --- by intensities and shapes ---------------------------------------------------------------------------------------
NEXT_TO_IT = Step(
    contrast=0.8, contrast_before=0.8, first_contrast=0.8, area_share=1.0, growth=1.0, distance_share=0.1, kept_share=0.95, is_only_slice=False,
)  # fmt: skip
DRAGGED = replace(NEXT_TO_IT, contrast=0.0, contrast_before=0.0, kept_share=1.0)  # The structure has ended, and its mask goes on.


@pytest.mark.parametrize(("step", "is_there"), [
    (NEXT_TO_IT, True),
    (replace(NEXT_TO_IT, distance_share=5.0), True),  # A long tube.
    (replace(NEXT_TO_IT, area_share=0.3, distance_share=0.5, kept_share=0.8), True),  # It tapers off.
    (replace(NEXT_TO_IT, contrast=0.5, contrast_before=0.5, area_share=0.05, distance_share=0.6, kept_share=0.6), False),  # Little is left.
    (DRAGGED, False),  # As sharp an end as the pole of a kidney.
    (replace(DRAGGED, distance_share=1.5, is_only_slice=True), False),
    (replace(DRAGGED, contrast_before=0.1, first_contrast=0.12), True),  # It never had much contrast.
    (replace(NEXT_TO_IT, contrast_before=0.4), False),  # Half of the contrast is gone.
    (replace(NEXT_TO_IT, contrast_before=0.4, kept_share=0.9, is_only_slice=True), True),  # The only annotated slice may say little.
    (replace(NEXT_TO_IT, contrast=0.3, contrast_before=0.3, first_contrast=0.3, growth=8.0, distance_share=0.9), False),  # A leak.
])  # fmt: skip
def test_a_structure_is_there_while_it_looks_like_itself(step, is_there):
    assert is_still_there(step) == is_there


@pytest.mark.parametrize(("name", "lower", "higher", "sign"), [
    ("contrast", 0.2, 0.9, 1), ("contrast_before", 0.2, 0.9, 1), ("area_share", 0.2, 0.9, 1), ("area_share", 1.0, 1.5, 0),
    ("growth", 1.0, 2.0, -1), ("growth", 0.5, 1.0, 0), ("distance_share", 0.2, 0.9, -1), ("distance_share", 2.0, 9.0, 0),
    ("kept_share", 0.2, 0.9, -1),
])  # fmt: skip
def test_what_speaks_for_a_structure(name, lower, higher, sign):
    difference = presence_logit(replace(NEXT_TO_IT, **{name: higher})) - presence_logit(replace(NEXT_TO_IT, **{name: lower}))
    assert difference * sign > 0 or difference == sign == 0
