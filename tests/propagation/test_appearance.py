"""Hand-drawn slices: a bright or a grey square on a dark or an equally grey ground."""

import pytest
import torch

from lib.model.features import THUMBNAIL_SIDE
from lib.propagation import appearance

ALL = torch.ones(THUMBNAIL_SIDE, THUMBNAIL_SIDE, dtype=torch.bool)


def slice_with(inside: int, around: int) -> torch.Tensor:
    image = torch.full((THUMBNAIL_SIDE, THUMBNAIL_SIDE), around, dtype=torch.uint8)
    image[20:40, 20:40] = inside
    return image


def square(low: int, high: int) -> torch.Tensor:
    mask = torch.zeros(THUMBNAIL_SIDE, THUMBNAIL_SIDE, dtype=torch.bool)
    mask[low:high, low:high] = True
    return mask


def contrast_of(annotated: torch.Tensor, image: torch.Tensor, mask: torch.Tensor, valid=ALL) -> float:
    table = appearance.intensity_likelihood(annotated, square(20, 40), valid)
    return float(appearance.inside_outside_contrast(table[None], image[None], mask[None], valid)[0])


def test_the_annotated_slice_itself_is_most_alike():
    bright = slice_with(200, 50)
    assert contrast_of(bright, bright, square(20, 40)) > 0.9


def test_where_the_object_has_ended_nothing_is_alike():
    assert contrast_of(slice_with(200, 50), slice_with(50, 50), square(20, 40)) == pytest.approx(0, abs=0.01)


def test_a_mask_on_the_surroundings_of_the_object_is_unlike():
    hole = square(15, 45) & ~square(20, 40)
    assert contrast_of(slice_with(200, 50), slice_with(200, 50), hole) < 0


def test_without_contrast_on_the_annotated_slice_there_is_no_evidence():
    grey = slice_with(90, 90)
    assert contrast_of(grey, slice_with(200, 50), square(20, 40)) == pytest.approx(0, abs=0.05)


def test_empty_masks_say_nothing():
    bright, nothing = slice_with(200, 50), torch.zeros_like(ALL)
    assert contrast_of(bright, bright, nothing) == 0
    assert appearance.intensity_likelihood(bright, nothing, ALL).tolist() == [0.5] * 32


def test_padding_is_no_surroundings():
    valid = ALL.clone()
    valid[:, 40:] = False
    grey = slice_with(90, 90)
    grey[:, 40:] = 0  # padding beside the square
    table = appearance.intensity_likelihood(grey, square(20, 40), valid)
    assert float(table[90 * 32 // 256]) == pytest.approx(0.5, abs=0.05)


def test_correlation_within_the_mask():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 255, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), generator=generator, dtype=torch.uint8) for _ in range(2))
    mask = square(20, 40)
    images, others = torch.stack([a, a, a, a]), torch.stack([a, 255 - a, b, a])
    found = appearance.image_correlation(images, others, torch.stack([mask, mask, mask, torch.zeros_like(mask)]))
    assert found.tolist() == pytest.approx([1, -1, 0, 0], abs=0.15)


def test_masks_of_any_size_become_small_ones():
    logits = torch.full((1, 256, 256), -5.0)
    logits[:, 80:160, 80:160] = 5
    assert torch.equal(appearance.shrink_masks(logits)[0], square(20, 40))
