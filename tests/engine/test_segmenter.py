"""The engine on small volumes with the embedded checkpoint: what a user may rely on whatever the weights are."""

import numpy as np
import pytest
import torch

from lib.common.errors import CheckpointError, OptionError, PromptError
from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging.volume import Volume
from lib.model import device
from lib.model.checkpoints import EMBEDDED
from lib.model.feature_cache import FeatureCache
from lib.model.sam2_network import Sam2Network

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
CENTRE = (30, 34, 6)


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter()


@pytest.fixture(scope="module")
def volume():
    """A bright ball, 12 slices of 64 x 64."""
    x, y, z = np.meshgrid(np.arange(64), np.arange(64), np.arange(12), indexing="ij")
    ball = ((x - 30) / 14) ** 2 + ((y - 34) / 14) ** 2 + ((z - 6) / 4.5) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 6, ball.shape)
    return Volume((60 + 110 * ball + noise).astype(np.float32), AFFINE, "ball")


def run(segmenter, volume, options=Options(), **prompts):
    return segmenter.segment(volume, segmenter.prompts(volume, options, **prompts), options)


def test_same_prompts_same_mask_whatever_was_asked_before(segmenter, volume):
    clicks = {"positive": [CENTRE, (30, 34, 3)], "negative": [(5, 5, 8)]}
    fresh = run(Segmenter(), volume, **clicks).mask
    for earlier in ({"positive": [CENTRE]}, {"positive": [(50, 10, 2)]}, {"positive": [CENTRE], "absent": [1]}):
        run(segmenter, volume, **earlier)
    np.testing.assert_array_equal(run(segmenter, volume, **clicks).mask, fresh)


def test_slices_are_encoded_once(segmenter, volume):
    run(segmenter, volume, positive=[CENTRE])
    copy = Volume(volume.array.copy(), AFFINE.copy(), "the same under another name")
    assert run(segmenter, copy, positive=[CENTRE]).encoded_count == 0
    assert run(segmenter, copy, Options(propagate=False), positive=[(31, 33, 5)]).encoded_count <= 1, "only what is new"


def test_features_that_were_forgotten_change_nothing(segmenter, volume):
    clicks = {"positive": [CENTRE, (30, 34, 3)]}
    forgetful = Segmenter(FeatureCache(limit_bytes=1))  # bytes
    mask = run(forgetful, volume, **clicks).mask
    np.testing.assert_array_equal(mask, run(segmenter, volume, **clicks).mask)


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
    prompts = {"positive": [CENTRE], "negative": [(36, 36, 5)]}
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


def count_steps(monkeypatch):
    """Return a list that grows by the slices that the network decodes from now on."""
    original, slices = Sam2Network.decode, []

    def counted(self, features, indices, **options):
        slices.extend(indices)
        return original(self, features, indices, **options)

    monkeypatch.setattr(Sam2Network, "decode", counted)
    return slices


def test_a_correction_runs_its_own_gaps_only(segmenter, volume, monkeypatch):
    one, two = {"positive": [CENTRE, (30, 34, 3)]}, {"positive": [CENTRE, (30, 34, 3), (28, 30, 3)]}
    whole = Options(focus=False)
    run(segmenter, volume, whole, **one)
    steps = count_steps(monkeypatch)
    corrected = run(segmenter, volume, whole, **two)
    assert max(steps) <= 5, "slices beyond the annotation at 6 are as they were"
    steps.clear()
    run(segmenter, volume, whole, **one)
    assert not steps, "undo costs no step of the network"
    np.testing.assert_array_equal(corrected.mask, run(Segmenter(), volume, whole, **two).mask)


def test_a_small_structure_is_tracked_in_its_surroundings(segmenter, volume, monkeypatch):
    from lib.model.features import SliceFeatures

    tracked_slices, original = [], SliceFeatures.__init__

    def noted(self, model, frames, *rest, **named):
        tracked_slices.append(frames.crop)
        original(self, model, frames, *rest, **named)

    monkeypatch.setattr(SliceFeatures, "__init__", noted)
    small, large = np.zeros((64, 64), bool), np.ones((64, 64), bool)
    small[25:36, 30:40] = True
    near = run(Segmenter(), volume, Options(components="all"), masks={6: small}).mask
    rows, columns = next(crop for crop in tracked_slices if crop)
    assert rows.stop - rows.start <= 0.5 * 64 and rows.start <= 30 and rows.stop >= 40
    assert columns.start <= 25 and columns.stop >= 36
    np.testing.assert_array_equal(near[:, :, 6], small)
    outside = np.ones((64, 64), bool)
    outside[columns, rows] = False
    assert near[:, :, 5].any() and not near[outside].any()
    tracked_slices.clear()
    run(Segmenter(), volume, masks={6: large})
    assert not any(tracked_slices), "a large structure is tracked_slices well enough"


def test_a_larger_cross_section_elsewhere_leaves_what_was_tracked_in_the_small_crop(volume, monkeypatch):
    segmenter, small, large = Segmenter(), np.zeros((64, 64), bool), np.ones((64, 64), bool)
    small[25:36, 30:40] = True
    first = run(segmenter, volume, Options(components="all"), masks={8: small})
    steps = count_steps(monkeypatch)
    both = run(segmenter, volume, Options(components="all"), masks={8: small, 4: large})
    assert max(steps) <= 8 and {5, 6, 7} < set(steps), "what lies beyond the small one is not followed again"
    np.testing.assert_array_equal(both.mask[..., 9:], first.mask[..., 9:])
    np.testing.assert_array_equal(both.mask[..., 4], large)
    again = run(Segmenter(), volume, Options(components="all"), masks={8: small, 4: large})
    np.testing.assert_array_equal(both.mask, again.mask)
    np.testing.assert_array_equal(both.estimates.expected_iou, again.estimates.expected_iou)
    assert both.estimates.expected_iou.shape == (12,) and both.estimates.expected_iou[[4, 8]].tolist() == [1, 1]


def test_a_known_request_costs_no_step_whoever_asks(segmenter, volume, monkeypatch):
    first = run(segmenter, volume, positive=[CENTRE], negative=[(36, 36, 6)])
    steps = count_steps(monkeypatch)
    again = run(segmenter, volume, positive=[CENTRE], negative=[(36, 36, 6)])
    assert not steps
    np.testing.assert_array_equal(first.mask, again.mask)


def test_stopping_early_changes_nothing_before_the_end(volume):
    """With an object score that says "gone" from slice 8 on, tracking stops after the distance asked for."""
    original = Sam2Network.decode

    def gone(self, features, indices, **options):
        out = original(self, features, indices, **options)
        away = torch.tensor([t >= 8 for t in indices])
        out["object_score_logits"] = torch.where(away[:, None], -5.0, out["object_score_logits"])
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sam2Network, "decode", gone)
        tracked_slices = count_steps(patch)
        stopped = run(Segmenter(), volume, Options(stop_mm=9), positive=[CENTRE])  # 3 slices of 3 mm
        assert 10 in tracked_slices and 11 not in tracked_slices
        tracked_slices.clear()
        never = run(Segmenter(), volume, Options(stop_mm=0), positive=[CENTRE])
        assert 11 in tracked_slices
    np.testing.assert_array_equal(stopped.mask[:, :, :8], never.mask[:, :, :8])


def test_only_slices_that_tracking_comes_to_are_encoded(volume):
    segmenter = Segmenter()
    assert run(segmenter, volume, Options(z_range=(5, 7), focus=False), positive=[CENTRE]).encoded_count == 3
    segmenter.prefetch(volume)
    assert segmenter.wait(60)
    assert run(segmenter, volume, Options(focus=False), positive=[CENTRE]).encoded_count == 0


def test_crops_are_encoded_ahead_as_far_as_a_correction_may_go(monkeypatch):
    monkeypatch.setattr("lib.engine.segmenter.SLICES_BEYOND_MASK", 8)
    x, y, z = np.meshgrid(np.arange(96), np.arange(96), np.arange(40), indexing="ij")
    ball = ((x - 30) / 8) ** 2 + ((y - 34) / 8) ** 2 + ((z - 20) / 4.5) ** 2 < 1
    volume, segmenter, near = Volume((60 + 110 * ball).astype(np.float32), AFFINE, "small ball"), Segmenter(), (30, 34, 20)
    result = run(segmenter, volume, positive=[near])
    (low, high, crop), = result.tracked
    filled = np.flatnonzero(result.areas)
    assert crop is not None and (low, high) == (filled[0] - 8, filled[-1] + 8)
    segmenter.prefetch(volume, Options(), result.annotated, result.tracked)
    assert segmenter.wait(120)
    again = run(segmenter, volume, Options(z_range=(low, high), stop_mm=0), positive=[near])
    assert again.encoded_count == 0 and again.tracked[0][2] == crop, "tracking never stops, and finds all encoded"


def test_out_of_memory_is_answered_by_smaller_steps(volume, monkeypatch):
    """As a GPU that is full: the first two attempts fail, the CPU answers."""
    segmenter, original, tried = Segmenter(), Segmenter._segment, []

    def full(self, volume, prompts, options, progress):
        tried.append((options.batch, options.device))
        if len(tried) < 3:
            raise torch.OutOfMemoryError("full")
        return original(self, volume, prompts, options, progress)

    monkeypatch.setattr(Segmenter, "_segment", full)
    monkeypatch.setattr(device, "resolve_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda"))
    result = run(segmenter, volume, positive=[CENTRE])
    assert tried == [(0, "auto"), (1, "auto"), (0, "cpu")] and result.mask.any()


def test_thin_slices_are_tracked_in_strides_unless_told_otherwise(volume, monkeypatch):
    thin = Volume(volume.array, np.diag([3.0, 3.0, 0.75, 1.0]), "thin")  # 64 pixels of 3 mm: 192 mm, twice 0.75 mm is 1/128
    steps = count_steps(monkeypatch)
    mask = run(Segmenter(), thin, Options(stop_mm=0), positive=[CENTRE]).mask
    assert {t for t in steps if t != 6} == {0, 2, 4, 8, 10}
    assert mask[:, :, 7].any()
    steps.clear()
    run(Segmenter(), thin, Options(stop_mm=0, stride=1), positive=[CENTRE])
    assert set(steps) == set(range(12))
    with pytest.raises(OptionError):
        Options(stride=-1)
