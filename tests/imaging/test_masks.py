"""Tests of components, distances and borders of masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lib.common.errors import OptionError
from lib.imaging import masks
from lib.imaging.masks import BorderStrength, keep_components

# Six slices of 1 x 6 pixels with components of 5, 3 and 1 pixels.
COMPONENTS = np.array(
    [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 2, 2],
        [0, 0, 1, 0, 0, 2],  # touches the block only at a corner, which 26-connectivity counts
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [3, 0, 0, 0, 0, 0],
    ]
)[:, None]
MASK = COMPONENTS > 0


@pytest.mark.parametrize(
    ("which", "annotated", "kept"),
    [
        ("all", [], (1, 2, 3)),
        ("largest", [5], (1,)),
        ("annotated", [0], (1,)),
        ("annotated", [2], (1, 2)),
        ("annotated", [5], (3,)),
        ("annotated", [0, 5], (1, 3)),
        ("annotated", range(6), (1, 2, 3)),
        ("annotated", [4], (1, 2, 3)),  # No component qualifies, so all are kept.
    ],
)
def test_keep_components(which, annotated, kept):
    before = MASK.copy()
    np.testing.assert_array_equal(keep_components(MASK, which, annotated), np.isin(COMPONENTS, kept))
    np.testing.assert_array_equal(MASK, before)


def test_slices_join_across_a_corner_but_not_across_a_gap():
    mask = np.zeros((4, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True  # connected across a corner
    mask[3, 1, 1] = True  # separated by the empty slice 2
    assert np.argwhere(keep_components(mask, "annotated", [0])).tolist() == [[0, 0, 0], [1, 1, 1]]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["annotated", "largest"]))
def test_components_agree_with_scipy(seed, which):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 9, 3)) < rng.uniform(0.05, 1)
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    slices = rng.permutation(len(mask))[:2].tolist()
    sizes = np.bincount(components.ravel())[1:]
    kept = np.unique(components[slices]) if which == "annotated" else [] if not count else [1 + sizes.argmax()]
    expected = np.isin(components, kept) & mask
    np.testing.assert_array_equal(keep_components(mask, which, slices), expected if expected.any() else mask)


@pytest.mark.parametrize("which", ["annotated", "largest", "all"])
def test_an_empty_mask_stays_empty(which):
    empty = np.zeros((3, 4, 5), bool)
    kept = keep_components(empty, which, [0, 1, 2])
    assert kept.shape == (3, 4, 5)
    assert not kept.any()


def test_an_unknown_choice_of_components_is_refused():
    with pytest.raises(OptionError, match="'biggest'.*annotated, largest, all"):
        keep_components(MASK, "biggest", [0])


def disc(radius, size=64):
    """Return a mask (size, size) of a disc at (30, 34)."""
    y, x = np.ogrid[:size, :size]
    return (y - 30) ** 2 + (x - 34) ** 2 <= radius**2


NOISY_DISC = np.where(disc(16), 120.0, 60.0) + np.random.default_rng(0).normal(0, 8, (64, 64))


@pytest.mark.parametrize("radius", [6, 10, 13, 19, 24])
def test_the_border_on_the_edge_has_the_highest_edge_strength(radius):
    assert BorderStrength(NOISY_DISC).edge_strength(disc(16)) > BorderStrength(NOISY_DISC).edge_strength(disc(radius)) + 0.05


@pytest.mark.parametrize("scale, offset", [(1, 0), (0.001, 3), (50, -1000), (-1, 0)])
def test_edge_strength_does_not_depend_on_the_intensity_range(scale, offset):
    np.testing.assert_allclose(BorderStrength(scale * NOISY_DISC + offset).edge_strength(disc(16)), BorderStrength(NOISY_DISC).edge_strength(disc(16)), atol=0.01)


@pytest.mark.parametrize("image, mask", [
    (NOISY_DISC, disc(16) & False), (NOISY_DISC, disc(16) | True), (np.zeros((64, 64), np.uint8), disc(16)),
])  # fmt: skip
def test_without_border_or_edge_the_strength_is_zero(image, mask):
    assert BorderStrength(image).edge_strength(mask) == 0


@given(st.integers(0, 2**32 - 1))
def test_edge_distance_agrees_with_scipy_wherever_the_mask_lies(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros(rng.integers(4, 20, 2), bool)
    y, x = (rng.integers(0, n) for n in mask.shape)
    mask[y : y + 6, x : x + 9] = rng.random(mask[y : y + 6, x : x + 9].shape) < 0.8
    np.testing.assert_array_equal(masks.edge_distance(mask), ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1])
