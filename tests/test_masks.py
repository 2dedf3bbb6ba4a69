import numpy as np
import pytest

from lib.errors import OptionError
from lib.masks import keep_components

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
