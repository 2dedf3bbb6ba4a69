"""Scores of two passes, step by step: one whose image stays as it was, one whose object is gone from slice 3 on."""

from types import SimpleNamespace

import torch

from lib.model.features import THUMBNAIL_SIDE
from lib.propagation.object_end import ObjectEndDetector

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
