"""The engine on small volumes with the embedded checkpoint: what a user may rely on whatever the weights are."""

import numpy as np
import pytest

from lib.common.errors import CheckpointError, OptionError, PromptError
from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging.volume import Volume
from lib.model.checkpoints import EMBEDDED
from tests.engine.ball import AFFINE, CENTRE, ball_volume, run


def test_same_prompts_same_mask_whatever_was_asked_before(segmenter, volume):
    clicks = {"positive": [CENTRE, (30, 34, 3)], "negative": [(5, 5, 8)]}
    fresh = run(Segmenter(), volume, **clicks).mask
    for earlier in ({"positive": [CENTRE]}, {"positive": [(50, 10, 2)]}, {"positive": [CENTRE], "absent": [1]}):
        run(segmenter, volume, **earlier)
    np.testing.assert_array_equal(run(segmenter, volume, **clicks).mask, fresh)


def test_clicked_voxels_are_as_the_user_said(segmenter, volume):
    mask = run(segmenter, volume, positive=[CENTRE, (28, 30, 9)], negative=[(36, 36, 6), (3, 3, 2)]).mask
    assert mask[CENTRE] and mask[28, 30, 9] and not mask[36, 36, 6] and not mask[3, 3, 2]


def test_clicks_decide_the_pixels_round_them_and_a_box_is_filled(segmenter, volume):
    for option in (True, False):
        mask = run(segmenter, volume, Options(obey=option), positive=[CENTRE, (50, 12, 6)], negative=[(34, 40, 6)]).mask[:, :, 6]
        assert (mask[49:52, 11:14].all() and not mask[33:36, 39:42].any()) == option, "the network alone does neither"
    box = np.argwhere(run(segmenter, volume, boxes=[((10, 20, 6), (50, 48, 6))]).mask[:, :, 6])
    extent = box.max(0) - box.min(0) + 1
    assert extent.prod() >= 0.7 * 41 * 29 and (box.min(0) >= (10, 20)).all() and (box.max(0) <= (50, 48)).all()


def test_masks_that_are_refined_follow_the_ball_as_well(segmenter, volume):
    masks = [run(segmenter, volume, Options(refine=option), positive=[CENTRE]).mask for option in (False, True, False)]
    np.testing.assert_array_equal(masks[0], masks[2])
    assert (masks[0] != masks[1]).any() and 2 * (masks[0] & masks[1]).sum() > 0.8 * (masks[0].sum() + masks[1].sum())


def test_one_click_finds_the_ball_in_both_directions(segmenter, volume):
    result = run(segmenter, volume, positive=[CENTRE])
    filled = result.mask.any((0, 1))
    assert filled[5] and filled[6] and filled[7]
    assert result.annotated == (6,) and len(result.estimates.predicted_iou) == 12
    assert ((result.estimates.presence >= 0) & (result.estimates.presence <= 1)).all()


def test_a_correction_changes_its_slice_and_is_kept(segmenter, volume):
    before = run(segmenter, volume, positive=[CENTRE]).mask
    spot = np.argwhere(before[:, :, 8])
    assert len(spot), "the mask must reach slice 8 for this test"
    i, j = (int(v) for v in spot[len(spot) // 2])
    result = run(segmenter, volume, positive=[CENTRE], negative=[(i, j, 8)])
    assert result.annotated == (6, 8)
    assert not result.mask[i, j, 8]
    assert (result.mask[:, :, 8] != before[:, :, 8]).sum() > 1, "more than the clicked voxel must change"


def test_a_click_inside_on_another_slice_corrects_the_tracked_mask_there(segmenter, volume):
    before = run(segmenter, volume, positive=[CENTRE]).mask[:, :, 8]
    spot = tuple(np.argwhere(before)[-1] + (6, 0))  # Missing from the mask, not far from its border.
    after = run(segmenter, volume, positive=[CENTRE, (*spot, 8)]).mask[:, :, 8]
    assert not before[spot] and after[spot]
    far = np.indices(before.shape)[0] < 30
    assert (before & far).sum() > 100 and (before != after)[far].sum() == 0, "the rest of the slice stays as it was displayed"


def test_clicks_that_were_made_on_a_slice_alone_are_decoded_alone(segmenter):
    """The second click would be no correction of the tracked mask, which is right there, but it is one of what the first click gives."""
    volume = ball_volume()
    volume.array[5:21, 5:21, 8] += 110  # Another structure, which tracking does not come to.
    on_slice_8 = [(12, 12, 8), (30, 34, 8)]

    def slice_8(*positive):
        return run(segmenter, volume, Options(propagate=False), positive=list(positive)).mask[:, :, 8]

    np.testing.assert_array_equal(slice_8(CENTRE, *on_slice_8), slice_8(*on_slice_8))
    assert (slice_8(CENTRE, *on_slice_8[:1]) != slice_8(*on_slice_8[:1])).any()


def test_a_click_outside_in_the_middle_of_a_tracked_mask_ends_the_structure_there(segmenter, volume):
    mask = run(segmenter, volume, positive=[CENTRE], negative=[(30, 34, 8)]).mask
    assert mask[:, :, 7].any() and not mask[:, :, 8:].any()


def test_not_here_blanks_the_slice_and_what_lies_beyond(segmenter, volume):
    mask = run(segmenter, volume, positive=[CENTRE], absent=[4, 8]).mask
    assert mask[:, :, 6].any() and not mask[:, :, :5].any() and not mask[:, :, 8:].any()


def test_a_painted_slice_comes_back_as_painted(segmenter, volume):
    painted = np.zeros((64, 64), bool)
    painted[20:41, 25:44] = True
    mask = run(segmenter, volume, masks={6: painted}).mask
    np.testing.assert_array_equal(mask[:, :, 6], painted)


@pytest.mark.parametrize("direction, low, high", [("forward", 6, 12), ("backward", 0, 7)])
def test_direction(segmenter, volume, direction, low, high):
    filled = run(segmenter, volume, Options(direction=direction), positive=[CENTRE]).mask.any((0, 1))
    assert not filled[:low].any() and not filled[high:].any() and filled[6]


def test_range_and_region_limit_the_mask(segmenter, volume):
    filled = run(segmenter, volume, Options(z_range=(5, 7)), positive=[CENTRE]).mask.any((0, 1))
    assert not filled[:5].any() and not filled[8:].any()
    mask = run(segmenter, volume, positive=[CENTRE], roi=((20, 20, 4), (34, 40, 8))).mask
    outside = mask.copy()
    outside[20:35, 20:41, 4:9] = False
    assert mask.any() and not outside.any()


def test_a_slice_model_fills_the_clicked_slice_only(segmenter, volume):
    result = run(segmenter, volume, Options(propagate=False), positive=[CENTRE])
    assert set(np.flatnonzero(result.mask.any((0, 1)))) == {6}


def test_a_click_outside_corrects_what_tracking_would_give_also_where_slices_are_not_filled(segmenter, volume):
    """The slice of the click outside has no other prompt: without tracking there would be nothing to correct."""
    prompts = {"positive": [CENTRE], "negative": [(36, 36, 5), (40, 40, 5)]}  # A slice with a single click may change with the others.
    mask = run(segmenter, volume, Options(propagate=False, focus=False), **prompts).mask
    assert np.flatnonzero(mask.any((0, 1))).tolist() == [5, 6]
    np.testing.assert_array_equal(mask[..., 5], run(segmenter, volume, Options(focus=False), **prompts).mask[..., 5])


@pytest.mark.parametrize("axis", ["0", "1", "2"])
def test_any_axis_can_be_time(segmenter, volume, axis):
    result = run(segmenter, volume, Options(axis=axis), positive=[CENTRE])
    assert result.axis == int(axis) and result.mask.shape == volume.shape and result.mask[CENTRE]


@pytest.mark.parametrize("shape", [(64, 48, 1), (5, 7, 3), (1, 1, 1), (300, 3, 4)])
def test_odd_shapes_work(segmenter, shape):
    voxel = tuple(n // 2 for n in shape)
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    result = run(segmenter, Volume(array, AFFINE, "odd"), Options(axis="2"), positive=[voxel])
    assert result.mask.shape == shape and result.mask[voxel]


def test_a_constant_volume_works(segmenter):
    result = run(segmenter, Volume(np.full((32, 32, 4), 7, np.int16)), positive=[(3, 3, 1)])
    assert result.mask.shape == (32, 32, 4)


@pytest.mark.parametrize("options, prompts, error", [
    ({}, {}, PromptError),
    ({}, {"negative": [CENTRE]}, PromptError),
    ({"z_range": (0, 2)}, {"positive": [CENTRE]}, PromptError),
    ({"z_range": (50, 60)}, {"positive": [CENTRE]}, PromptError),
    ({"window": "liver"}, {"positive": [CENTRE]}, OptionError),
    ({"device": "cuda:99"}, {"positive": [CENTRE]}, OptionError),
    ({"checkpoint": "none"}, {"positive": [CENTRE]}, CheckpointError),
])  # fmt: skip
def test_impossible_requests_say_so(segmenter, volume, options, prompts, error):
    with pytest.raises(error, match=r"\.$|\w"):
        run(segmenter, volume, Options(**options), **prompts)


@pytest.mark.parametrize("name", ["direction", "components"])
def test_unknown_choices_are_refused(name):
    with pytest.raises(OptionError, match=name):
        Options(**{name: "sideways"})


def test_two_users_at_once_get_what_each_would_alone(segmenter, volume):
    from concurrent.futures import ThreadPoolExecutor

    other = Volume(volume.array[::-1].copy(), AFFINE, "mirrored")
    jobs = [(volume, {"positive": [CENTRE]}), (other, {"positive": [(33, 34, 6)]}), (volume, {"positive": [(10, 50, 2)]})] * 2
    alone = [run(Segmenter(), v, **p).mask for v, p in jobs[:3]] * 2
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda job: run(segmenter, job[0], **job[1]).mask, jobs))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_file_at_two_image_sizes_is_two_networks(segmenter, volume):
    at_256 = run(segmenter, volume, positive=[CENTRE])
    options = Options(checkpoint=f"{EMBEDDED}@sam2_hiera_nano_256.yaml@128")
    at_128 = run(segmenter, volume, options, positive=[CENTRE])
    assert at_128.encoded_count > 0 and (at_128.mask != at_256.mask).any()
