"""What passes give, interpolated between tracked slices and blended where two meet."""

import pytest
import torch

from lib.model.sam2_network import ABSENT_LOGIT
from lib.propagation.blending import blend_into, fill_pass
from lib.propagation.gaps import GapPass
from lib.propagation.tracks import Tracks


def flat(value):
    return torch.full((2, 2), float(value))


def test_slices_between_tracked_ones_are_interpolated_from_the_annotated_slice_on():
    gap_pass = GapPass(1, 1, 6, None, 3)  # fills 2..7, tracks 3 and 6
    logits, iou, score = fill_pass(gap_pass, [(flat(4), 0.5, 2.0), (flat(-2), 0.2, -1.0)], (flat(8), 0.9, 6.0))
    assert logits[:, 0, 0].tolist() == pytest.approx([6, 4, 2, 0, -2, -2], abs=1e-5)
    assert iou.tolist() == pytest.approx([0.7, 0.5, 0.4, 0.3, 0.2, 0.2])
    assert score.tolist() == pytest.approx([4, 2, 1, 0, -1, -1], abs=1e-5)


def test_an_object_that_is_lost_ends_between_two_tracked_slices():
    gap_pass = GapPass(0, 1, 8, None, 4)  # tracks 4 and 8, and has stopped before 8
    logits, _, score = fill_pass(gap_pass, [(flat(6), 0.5, 2.0)], (flat(6), 0.9, 2.0))
    assert (logits[:, 0, 0] > 0).tolist() == [True] * 5 + [False] * 3
    assert logits[-1, 0, 0] == ABSENT_LOGIT and score[-1] == -10


def test_without_a_stride_nothing_is_changed():
    logits, _, _ = fill_pass(GapPass(0, 1, 2), [(flat(600), 0.5, 2.0), (flat(ABSENT_LOGIT), 0.5, -2.0)], (flat(1), 1.0, 1.0))
    assert logits[:, 0, 0].tolist() == [600, ABSENT_LOGIT]


def outputs(*logits):
    """Return the outputs of a pass with these logits, equally sure on all slices."""
    return torch.stack([flat(v) for v in logits]), torch.ones(len(logits)), torch.full((len(logits),), 5.0)


def empty_tracks(total):
    return Tracks(torch.full((total, 2, 2), ABSENT_LOGIT), torch.ones(total), torch.full((total,), -10.0), torch.full((total,), torch.nan))


def test_two_passes_through_a_gap_are_blended_by_distance():
    tracks = empty_tracks(5)  # annotated: 0 and 4
    blend_into(tracks, {GapPass(0, 1, 3, 4): outputs(8, 8, 8), GapPass(4, -1, 3, 0): outputs(-8, -8, -8)})
    assert tracks.logits[1:4, 0, 0].tolist() == pytest.approx([4, 0, -4], abs=1e-5)
    assert tracks.agreement[1:4].tolist() == [0, 0, 0]


def test_an_absent_direction_does_not_overrule_the_other():
    tracks = empty_tracks(4)
    blend_into(tracks, {GapPass(0, 1, 2, 3): outputs(9, 9), GapPass(3, -1, 2, 0): outputs(ABSENT_LOGIT, ABSENT_LOGIT)})
    assert tracks.logits[1, 0, 0] > 0 > tracks.logits[2, 0, 0] > -10


def test_a_single_pass_is_taken_as_it_is():
    tracks = empty_tracks(4)
    blend_into(tracks, {GapPass(1, -1, 1): outputs(700)})
    assert tracks.logits[:, 0, 0].tolist() == [700, *[ABSENT_LOGIT] * 3] and tracks.agreement.isnan().all()
