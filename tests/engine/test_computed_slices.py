"""What the engine computes anew for a request, and what it knows already or need not know; the masks are the same."""

import numpy as np
import pytest
import torch

from lib.common.errors import OptionError
from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging.volume import Volume
from lib.model import device
from lib.model.feature_cache import FeatureCache
from lib.model.sam2_network import Sam2Network
from tests.engine.ball import AFFINE, CENTRE, run


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
    options = Options(components="all", refine=False)  # The random walk, which knows all prompts, may change voxels everywhere.
    first = run(segmenter, volume, options, masks={8: small})
    steps = count_steps(monkeypatch)
    both = run(segmenter, volume, options, masks={8: small, 4: large})
    assert max(steps) <= 8 and {5, 6, 7} < set(steps), "what lies beyond the small one is not followed again"
    np.testing.assert_array_equal(both.mask[..., 9:], first.mask[..., 9:])
    np.testing.assert_array_equal(both.mask[..., 4], large)
    again = run(Segmenter(), volume, options, masks={8: small, 4: large})
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
