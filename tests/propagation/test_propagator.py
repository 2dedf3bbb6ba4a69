"""The tracker against the official video predictor: same network, same weights, same prompts."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import sam2.sam2_video_predictor as official_module
import torch
from scipy import ndimage

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.model import checkpoints
from lib.model.build import build, build_official, keep_decoder_in_float32, normalize
from lib.model.features import FeatureCache, SliceFeatures
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.propagator import ABSENT, PropagationTask, Tracker

CONFIG = "sam2_hiera_nano_256.yaml"
SLICES = 7


@pytest.fixture(scope="module")
def model():
    """Computed by SAM 2's own routines, so that differences are the tracker's own; for the quicker ones see test_kernels."""
    usual = build(CONFIG)
    usual.load_state_dict({k: v.float() for k, v in checkpoints.read_weights(checkpoints.EMBEDDED).items()})
    return keep_decoder_in_float32(usual)


@pytest.fixture(scope="module")
def features(model):
    """A dark volume with a bright ball in the middle, smooth noise over it; encoded slice by slice as the official
    predictor does, so that the features are bit-equal and differences are the tracker's own."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.arange(n) for n in (256, 256, SLICES)), indexing="ij")
    ball = ((x - 120) / 40) ** 2 + ((y - 100) / 40) ** 2 + ((z - 3) / 3.5) ** 2 < 1
    array = 60 + 120 * ball + 25 * ndimage.gaussian_filter(rng.normal(size=ball.shape), (6, 6, 1)) * 10
    volume = Volume(np.clip(array, 0, 255).astype(np.uint8))
    return SliceFeatures(model, Frames(volume, 2, (0.0, 255.0)), torch.device("cpu"), nullcontext, 1)


def click(x, y, label=1):
    return SlicePrompt(np.array([[x, y]], float), np.array([label], np.int32))


def official_tracks(model, features, prompts, monkeypatch, *, start, reverse=False):
    """{slice: low-resolution logits} of `SAM2VideoPredictor` on the same frames."""
    predictor = build_official(CONFIG)
    predictor.load_state_dict(model.state_dict())
    squares = features.squares(range(len(features.frames)))
    monkeypatch.setattr(official_module, "load_video_frames", lambda **_: (normalize(squares), 256, 256))
    state = predictor.init_state(video_path="")
    for t, (x, y) in prompts.items():
        predictor.add_new_points_or_box(state, t, 1, points=[[x, y]], labels=[1])
    for _ in predictor.propagate_in_video(state, start_frame_idx=start, reverse=reverse):
        pass
    outputs = state["output_dict_per_obj"][0]
    both = outputs["cond_frame_outputs"] | outputs["non_cond_frame_outputs"]
    return {t: out["pred_masks"][0, 0] for t, out in both.items()}


def test_features_are_those_of_the_official_encoder(model, features):
    predictor = build_official(CONFIG)
    predictor.load_state_dict(model.state_dict())
    with torch.inference_mode():
        expected = predictor.forward_image(normalize(features.squares([2])))["backbone_fpn"]
    ours, _, _ = features.gather([2])
    for mine, theirs in zip(ours, expected, strict=True):
        assert torch.equal(mine[:, 0], theirs[0].flatten(1).T)


@pytest.mark.parametrize("reverse", [False, True])
def test_one_annotation_equals_the_official_pass(model, features, monkeypatch, reverse):
    expected = official_tracks(model, features, {3: (120, 100)}, monkeypatch, start=3, reverse=reverse)
    tracker = Tracker(model, nullcontext)
    tracks = tracker.propagate(features, {3: tracker.annotate(features, 3, click(120, 100))}, low=0, high=SLICES - 1)
    assert set(expected) == (set(range(0, 4)) if reverse else set(range(3, SLICES)))
    for t, logits in expected.items():
        torch.testing.assert_close(tracks.logits[t], logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_gap_equals_the_official_pass_between_its_ends(model, features, monkeypatch, reverse):
    clicks = {0: (120, 100), SLICES - 1: (118, 103)}
    start = SLICES - 1 if reverse else 0
    expected = official_tracks(model, features, clicks, monkeypatch, start=start, reverse=reverse)
    tracker = Tracker(model, nullcontext)
    annotated = {t: tracker.annotate(features, t, click(*xy)) for t, xy in clicks.items()}
    tracks = tracker.propagate(
        features, annotated, low=0, high=SLICES - 1, forward=not reverse, backward=reverse
    )  # fmt: skip
    for t in range(1, SLICES - 1):
        torch.testing.assert_close(tracks.logits[t], expected[t], atol=1e-4, rtol=0)


def test_gaps_do_not_depend_on_each_other(model, features):
    """A further annotation changes its own gap only; the batch of all gaps equals each gap on its own."""
    tracker = Tracker(model, nullcontext)
    annotated = {t: tracker.annotate(features, t, click(120, 100)) for t in (0, 3, 6)}
    both = tracker.propagate(features, annotated, low=0, high=6)
    left = tracker.propagate(features, {t: annotated[t] for t in (0, 3)}, low=0, high=3)
    right = tracker.propagate(features, {t: annotated[t] for t in (3, 6)}, low=3, high=6)
    # Matrix products round differently by batch size, and memories are kept in bfloat16, as in the official predictor.
    torch.testing.assert_close(both.logits[:4], left.logits[:4], atol=2e-3, rtol=0)
    torch.testing.assert_close(both.logits[3:], right.logits[3:], atol=2e-3, rtol=0)


def test_structures_together_equal_each_alone(model, features):
    tracker = Tracker(model, nullcontext, drop=0.4, gain=4.0)
    structures = [{3: tracker.annotate(features, 3, click(120, 100))},
                  {t: tracker.annotate(features, t, click(40, 200)) for t in (1, 5)}]  # fmt: skip
    together = tracker.propagate_all([PropagationTask(features, a, 0, 6) for a in structures])
    for annotated, tracks in zip(structures, together, strict=True):
        alone = tracker.propagate(features, annotated, low=0, high=6)
        torch.testing.assert_close(tracks.logits, alone.logits, atol=2e-3, rtol=0)  # batches round differently


@pytest.mark.parametrize("split", [False, True])
def test_runs_that_share_a_core_equal_each_alone(model, features, monkeypatch, split):
    """Also where another core takes one of them over on the way."""
    steps = []
    monkeypatch.setattr("lib.propagation.propagator.spare", lambda: split and len(steps) == 2)
    tracker = Tracker(model, nullcontext, drop=2.0, gain=1.0)
    annotated = {t: tracker.annotate(features, t, click(120, 100)) for t in (1, 5)}
    alone = tracker.propagate(features, annotated, low=0, high=SLICES - 1, batch=1)
    step = tracker._step
    monkeypatch.setattr(tracker, "_step", lambda f, slices, **k: steps.append(len(slices)) or step(f, slices, **k))
    together = tracker.propagate(features, annotated, low=0, high=SLICES - 1, batch=2)
    assert 2 in steps and (1 in steps) == split
    torch.testing.assert_close(together.logits, alone.logits, atol=2e-3, rtol=0)  # as above


def test_one_click_more_takes_no_more_steps_than_the_one_before(model, features, monkeypatch):
    tracker = Tracker(model, nullcontext)
    step, steps = tracker._step, []
    monkeypatch.setattr(tracker, "_step", lambda *a, **k: steps.append(1) or step(*a, **k))
    places, labels = np.array([[120, 100], [100, 90], [140, 110], [60, 60], [125, 80]], float), np.array([1, 1, 1, 0, 1], np.int32)
    counts = []
    for n in (2, 3, 4, 5):
        steps.clear()
        last = tracker.annotate(features, 3, SlicePrompt(places[:n], labels[:n]))
        counts.append(len(steps))
    assert counts == [4, 3, 3, 3], "all at once, on that again, the last in turn; once also the first in turn"
    fresh = Tracker(model, nullcontext).annotate(features, 3, SlicePrompt(places, labels))
    assert torch.equal(last.logits, fresh.logits)


@pytest.mark.parametrize("how", ["half precision", "features kept in half"])
def test_half_precision_draws_the_same_masks(model, features, how):
    half = partial(torch.autocast, "cpu", dtype=torch.bfloat16) if how == "half precision" else nullcontext
    again = SliceFeatures(model, features.frames, torch.device("cpu"), half, 1, half=half is nullcontext)
    drawn = []
    for autocast, of in ((nullcontext, features), (half, again)):
        tracker = Tracker(model, autocast)
        tracks = tracker.propagate(of, {3: tracker.annotate(of, 3, click(120, 100))}, low=0, high=6)
        drawn.append(of.to_slices(tracks.logits) > 0)
    full, coarse = drawn
    inside = (full & coarse).sum((1, 2)).float()
    total = full.sum((1, 2)) + coarse.sum((1, 2))
    assert (total > 0).sum() > 4
    assert (2 * inside[total > 0] / total[total > 0]).tolist() == pytest.approx([1.0] * int((total > 0).sum()), abs=0.001)


def test_an_empty_slice_stops_tracking(model, features):
    tracker = Tracker(model, nullcontext)
    nothing = SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), np.zeros((256, 256), bool))
    annotated = {2: tracker.annotate(features, 2, click(120, 100)), 4: tracker.annotate(features, 4, nothing)}
    tracks = tracker.propagate(features, annotated, low=0, high=6)
    assert (tracks.logits[4] <= 0).all()
    assert (tracks.logits[5:] == ABSENT).all()


def test_a_painted_slice_is_kept(model, features):
    painted = np.zeros((256, 256), bool)
    painted[60:140, 80:160] = True
    tracker = Tracker(model, nullcontext)
    out = tracker.annotate(features, 3, SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), painted))
    back = features.to_slices(out.logits[0])[0].numpy() > 0
    assert 2 * (back & painted).sum() / (back.sum() + painted.sum()) > 0.97


def test_limits_and_directions_are_kept(model, features):
    tracker = Tracker(model, nullcontext)
    annotated = {3: tracker.annotate(features, 3, click(120, 100))}
    tracks = tracker.propagate(features, annotated, low=2, high=6, backward=False)
    assert (tracks.logits[[0, 1, 2]] == ABSENT).all()


def test_padding_and_aspect_map_back():
    """A slice of 100 x 200 pixels of 2 x 1 mm fills the square; one of 50 x 200 isotropic pixels fills a quarter."""
    for shape, spacing, expected in (((200, 100, 2), (1, 2, 5), (256, 256)), ((200, 50, 2), (1, 1, 5), (64, 256))):
        volume = Volume(np.zeros(shape, np.uint8), np.diag([*spacing, 1.0]))
        f = SliceFeatures(build(CONFIG), Frames.of(volume), torch.device("cpu"), nullcontext, 1)
        assert (f.height, f.width) == expected
        assert f.squares([0]).shape == (1, 256, 256)
        corner = np.array([[shape[0] - 0.5, shape[1] - 0.5]])  # the slice's lower right edge, x then y
        np.testing.assert_allclose(f.to_square(corner), [[expected[1] - 0.5, expected[0] - 0.5]])
        mask = np.zeros((shape[1], shape[0]), bool)
        mask[10:40, 20:160] = True
        logits = f.mask_to_square(mask)[0] * 20 - 10
        back = f.to_slices(logits)[0].numpy() > 0
        assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.95


def test_store_forgets_the_oldest_volume_first():
    class Entry:
        bytes = 60

        def spill_all(self):
            pass

    store = FeatureCache(limit=100)
    first = store.get(("a",), Entry)
    store.get(("b",), Entry)
    assert store.get(("a",), Entry) is first  # used again: "b" is now the oldest
    store.trim()
    assert store.bytes == 60 and store.get(("a",), Entry) is first
