import numpy as np
import pytest

from lib.errors import OptionError
from lib.masks import Borders, keep_components

# One slice (6, 6): a blob of 5, one of 3, one of 1 that touches nothing.
DRAWN = np.array(
    [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 2, 2],
        [0, 0, 1, 0, 0, 2],  # joined to the block by a corner: 26-connected
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [3, 0, 0, 0, 0, 0],
    ]
)[:, :, None]
MASK = DRAWN > 0


def at(*voxels):
    out = np.zeros(MASK.shape, bool)
    for v in voxels:
        out[v] = True
    return out


@pytest.mark.parametrize(
    ("which", "annotated", "kept"),
    [
        ("all", at(), (1, 2, 3)),
        ("largest", at((5, 0, 0)), (1,)),
        ("annotated", at((2, 5, 0)), (2,)),
        ("annotated", at((2, 2, 0)), (1,)),
        ("annotated", at((0, 0, 0), (5, 0, 0)), (1, 3)),
        ("annotated", np.ones(MASK.shape, bool), (1, 2, 3)),
        ("annotated", at((4, 4, 0)), (1, 2, 3)),  # touches none: better all than nothing
    ],
)
def test_drawn(which, annotated, kept):
    before = MASK.copy()
    np.testing.assert_array_equal(keep_components(MASK, which, annotated), np.isin(DRAWN, kept))
    np.testing.assert_array_equal(MASK, before)


def test_slices_join_across_a_corner_but_not_across_a_gap():
    mask = np.zeros((3, 3, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True  # joined
    mask[1, 1, 3] = True  # slice 2 lies between
    annotated = np.zeros_like(mask)
    annotated[:, :, 0] = True
    assert np.argwhere(keep_components(mask, "annotated", annotated)).tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("which", ["annotated", "largest", "all"])
def test_empty_stays_empty(which):
    empty = np.zeros((3, 4, 5), bool)
    out = keep_components(empty, which, np.ones_like(empty))
    assert out.shape == (3, 4, 5)
    assert not out.any()


def test_unknown():
    with pytest.raises(OptionError, match="'biggest'.*annotated, largest, all"):
        keep_components(MASK, "biggest", MASK)


def disc(radius, size=64):
    y, x = np.ogrid[:size, :size]
    return (y - 30) ** 2 + (x - 34) ** 2 <= radius**2


NOISY_DISC = np.where(disc(16), 120.0, 60.0) + np.random.default_rng(0).normal(0, 8, (64, 64))


@pytest.mark.parametrize("radius", [6, 10, 13, 19, 24])
def test_the_border_on_the_edge_has_the_highest_contrast(radius):
    assert Borders(NOISY_DISC).contrast(disc(16)) > Borders(NOISY_DISC).contrast(disc(radius)) + 0.05


@pytest.mark.parametrize("scale, offset", [(1, 0), (0.001, 3), (50, -1000), (-1, 0)])
def test_contrast_does_not_depend_on_the_range(scale, offset):
    np.testing.assert_allclose(Borders(scale * NOISY_DISC + offset).contrast(disc(16)), Borders(NOISY_DISC).contrast(disc(16)), atol=0.01)


@pytest.mark.parametrize("image, mask", [
    (NOISY_DISC, disc(16) & False), (NOISY_DISC, disc(16) | True), (np.zeros((64, 64), np.uint8), disc(16)),
])  # fmt: skip
def test_no_border_or_no_edge_is_no_contrast(image, mask):
    assert Borders(image).contrast(mask) == 0
