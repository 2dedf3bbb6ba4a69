"""Quicker routines compute what SAM 2's own do."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from lib.imaging import metrics
from lib.imaging.frames import Frames
from lib.imaging.masks import deepest_pixel
from lib.model import checkpoints, kernels
from lib.model.build import build, keep_decoder_in_float32
from lib.model.features import SliceFeatures
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.propagator import Tracker
from lib.samples import phantom

CONFIG = "sam2_hiera_nano_256.yaml"


@pytest.fixture(scope="module")
def both():
    """The network as it is served, and as SAM 2 computes it."""
    embedded = checkpoints.find("embedded")
    usual = build(CONFIG)
    usual.load_state_dict({k: v.float() for k, v in checkpoints.read_weights(embedded.path).items()})
    return checkpoints.load(embedded), keep_decoder_in_float32(usual)


def close(a, b):
    return float((a - b).abs().max()) <= 2e-6 * float(b.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("slices", [1, 3])
def test_the_image_encoder(both, slices):
    image = torch.rand(slices, 3, 256, 256, generator=torch.Generator().manual_seed(slices)) - 0.5
    quick, usual = (model.forward_image(image) for model in both)
    for name in ("backbone_fpn", "vision_pos_enc"):
        assert all(close(a, b) and a.shape == b.shape for a, b in zip(quick[name], usual[name], strict=True))


@torch.inference_mode()
@pytest.mark.parametrize(("memories", "pointers", "runs"), [(1, 2, 1), (4, 8, 1), (4, 8, 2), (2, 0, 1)])
def test_the_memory_attention(both, memories, pointers, runs):
    generator = torch.Generator().manual_seed(memories)
    tokens = 256 * memories + pointers
    curr, position, memory, codes = (
        torch.randn(n, runs, c, generator=generator) for n, c in ((256, 128), (256, 128), (tokens, 64), (tokens, 64))
    )
    quick, usual = (
        m.memory_attention(curr=[curr], curr_pos=[position], memory=memory, memory_pos=codes, num_obj_ptr_tokens=pointers)
        for m in both
    )
    assert close(quick, usual)


@torch.inference_mode()
def test_the_memory_encoder(both):
    generator = torch.Generator().manual_seed(0)
    features, mask = (torch.randn(shape, generator=generator) for shape in ((2, 128, 16, 16), (2, 1, 256, 256)))
    quick, usual = (m.memory_encoder(features, mask, skip_mask_sigmoid=True) for m in both)
    assert close(quick["vision_features"], usual["vision_features"]) and close(
        quick["vision_pos_enc"][0], usual["vision_pos_enc"][0]
    )


def test_other_image_sizes_than_that_of_the_codes():
    small = build(CONFIG, image_size=128)
    curr, memory = torch.rand(64, 1, 128), torch.rand(130, 1, 64)
    given = {"curr": [curr], "curr_pos": [curr], "memory": memory, "memory_pos": memory, "num_obj_ptr_tokens": 2}
    with torch.inference_mode():
        usual = small.memory_attention(**given)
        assert close(kernels.quicken(small).memory_attention(**given), usual)


def test_the_same_masks_all_along_a_volume(both):
    """What differs in the last digit of one slice does not add up."""
    volume, labels = phantom.abdomen(3, shape=(96, 96, 24), spacing_mm=(4, 4, 5))
    frames, t = Frames.of(volume), 12
    y, x = deepest_pixel(Frames.of(volume).from_volume(labels == phantom.LABELS["liver"])[t])
    found = []
    for model in both:
        features = SliceFeatures(model, frames, torch.device("cpu"), nullcontext, 2)
        tracker = Tracker(model, nullcontext)
        click = SlicePrompt(np.array([[x, y]], float), np.array([1], np.int32))
        found.append(tracker.propagate(features, {t: tracker.annotate(features, t, click)}, low=0, high=23).logits > 0)
    quick, usual = (m.numpy() for m in found)
    assert usual.any((1, 2)).sum() > 5
    assert all(metrics.dice(a, b) >= 0.999 for a, b in zip(quick, usual, strict=True))


@pytest.mark.skipif(not kernels.available(), reason="needs AVX-512")
def test_runs_come_out_the_same_to_the_last_digit_alone_together_and_taken_over(both, monkeypatch):
    """Who shares a core with whom depends on the time that others take; what users get must not."""
    volume, labels = phantom.abdomen(3, shape=(96, 96, 24), spacing_mm=(4, 4, 5))
    frames = Frames.of(volume)
    features, tracker = SliceFeatures(both[0], frames, torch.device("cpu"), nullcontext, 2), Tracker(both[0], nullcontext, 2.0, gain=1.0)
    annotated, asked, found = {}, [], []
    for t in (9, 15):
        y, x = deepest_pixel(frames.from_volume(labels == phantom.LABELS["liver"])[t])
        annotated[t] = tracker.annotate(features, t, SlicePrompt(np.array([[x, y]], float), np.array([1], np.int32)))
    for batch, taken_over in ((1, 0), (2, 0), (2, 3)):
        asked.clear()
        monkeypatch.setattr("lib.propagation.propagator.spare", lambda at=taken_over: asked.append(1) or len(asked) == at)
        found.append(tracker.propagate(features, annotated, low=0, high=23, batch=batch))
    for other in found[1:]:
        assert all(torch.equal(getattr(found[0], k), getattr(other, k)) for k in ("logits", "iou", "object_score"))
    assert (found[0].logits > 0).any((1, 2)).sum() > 5


def test_gradients_and_bfloat16_go_the_usual_way(both):
    image = torch.rand(1, 3, 256, 256)
    quick, usual = (model.forward_image(image)["backbone_fpn"][2] for model in both)
    assert quick.requires_grad and torch.equal(quick, usual)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        quick, usual = (model.forward_image(image)["backbone_fpn"][2] for model in both)
    assert torch.equal(quick, usual)


def test_weights_may_change(both):
    layer = torch.nn.Linear(8, 4)
    layer.forward = kernels._either(layer.forward, kernels._linear(layer))
    with torch.inference_mode():
        layer.weight.copy_(torch.zeros(4, 8))
        assert torch.equal(layer(torch.ones(2, 8)), layer.bias.expand(2, 4))
