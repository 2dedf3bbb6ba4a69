"""Tests of the prompts and losses of a training step."""

import pytest
import torch

from lib.model.differentiable import Prediction
from lib.training import batch_prompts
from lib.training.batch_random import BatchRandom
from lib.training.step_losses import StepLosses, box_losses, click_losses, mask_iou, mask_losses
from lib.training.tracking_step import StepPlan

RANDOM = BatchRandom()


def square(low: int, high: int, side: int = 20) -> torch.Tensor:
    """Return a mask, bool (1, side, side), with a square."""
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[0, low:high, low:high] = True
    return mask


def test_erosion_depth_counts_erosions():
    depth = batch_prompts.erosion_depth(square(2, 7, side=9))[0]
    assert depth[0, 0] == 0 and depth[2, 2] == 1 and depth[3, 3] == 2 and depth[4, 4] == 3


def test_a_corrective_click_goes_to_the_larger_error():
    reference, predicted = square(2, 12), square(16, 19)  # The first is missed; the second one is wrongly included, and smaller.
    click = batch_prompts.add_corrective_click(RANDOM, None, predicted, reference)
    x, y = click["point_coords"][0, 0].int().tolist()
    assert click["point_labels"].tolist() == [[1]] and reference[0, y, x]
    click = batch_prompts.add_corrective_click(RANDOM, click, reference | predicted, reference)
    x, y = click["point_coords"][0, 1].int().tolist()
    assert click["point_labels"].tolist() == [[1, 0]] and predicted[0, y, x]


def test_the_first_click_lies_inside():
    x, y = batch_prompts.sample_first_click(RANDOM, square(5, 9))["point_coords"][0, 0].int().tolist()
    assert 5 <= x < 9 and 5 <= y < 9


def test_a_box_without_jitter_is_tight():
    mask = torch.zeros(1, 30, 30, dtype=torch.bool)
    mask[0, 4:9, 10:17] = True
    prompt = batch_prompts.sample_box(RANDOM, mask, jitter=0.0)
    assert prompt["point_coords"][0].tolist() == [[10, 4], [17, 9]] and prompt["point_labels"][0].tolist() == [2, 3]


def test_a_painted_mask_is_nearly_the_mask():
    masks = square(4, 16).expand(50, -1, -1)
    overlap = (batch_prompts.paint(RANDOM, masks) & masks).sum() / masks.sum()
    assert 0.7 < overlap < 1 and batch_prompts.paint(RANDOM, masks).flatten(1).any(1).all()


def test_losses_are_lower_for_the_right_mask():
    reference = square(2, 6, side=8).float()
    right = torch.where(reference > 0, 8.0, -8.0)[:, None]
    for balance in (0.0, 1.0):
        assert mask_losses(right, reference, balance).item() < 0.05 < mask_losses(-right, reference, balance).item()
    assert mask_iou(right, reference).item() == 1 and mask_iou(-right, reference).item() == 0


def test_clicks_and_boxes_must_be_obeyed():
    reference = square(6, 14)
    right = torch.where(reference, 8.0, -8.0)[:, None]
    smaller = torch.where(square(8, 12), 8.0, -8.0)[:, None]
    click = {"point_coords": torch.tensor([[[10.0, 10.0]]]), "point_labels": torch.ones(1, 1)}
    assert click_losses(right, click, reference).item() < 0.01 < click_losses(-right, click, reference).item()
    assert box_losses(right, reference.float()).item() < 0.01 < box_losses(smaller, reference.float()).item()


@pytest.mark.parametrize("valid", [0.0, 1.0])
def test_absent_objects_train_only_the_object_score(valid):
    """What the first slice does not show trains nothing."""
    masks = torch.randn(1, 4, 8, 8, requires_grad=True)
    score = torch.zeros(1, 1, requires_grad=True)
    prediction = Prediction(masks, torch.rand(1, 4), score, torch.zeros(1, dtype=torch.long), torch.zeros(1, 4))
    losses = StepLosses(0.5, torch.ones(1), torch.full((1,), valid))
    losses.add("track", prediction, torch.zeros(1, 32, 32, dtype=torch.bool))
    losses.mean_loss.backward()
    assert masks.grad.abs().sum() == 0 and (score.grad.item() > 0) == bool(valid)


def test_plans_hold_each_kind_of_step():
    plans = [StepPlan.draw(seed, 8) for seed in range(200)]
    assert {p.first for p in plans} == {"click", "box"} and {p.corrections for p in plans} == {0, 1, 2, 3, 4}
    assert {p.has_far_end for p in plans} == {True, False}
    assert None in {p.fixed_slice for p in plans} and all(p.fixed_slice is None or 2 <= p.fixed_slice < 6 for p in plans)
    assert StepPlan.draw(3, 8) == StepPlan.draw(3, 8)
    assert all(not StepPlan.draw(seed, 1).has_far_end for seed in range(20))
