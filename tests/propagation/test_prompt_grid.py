"""The grid round a mask and its prompts: what lies where."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.propagation import prompt_grid
from lib.propagation.prompt_grid import PromptGrid


def grid_round(mask, clicks, spacing_mm=(1.0, 1.0, 1.0), low=0, high=None):
    """Return the grid round a mask (T, Y, X) and clicks (t, y, x); `spacing_mm` is that of slices, rows and columns."""
    frames = Frames.of(Volume(np.zeros(mask.shape[::-1], np.float32), np.diag([*spacing_mm[::-1], 1.0])), axis=2)
    return PromptGrid.around(mask, np.array(clicks, int).reshape(-1, 3), frames, low, len(mask) - 1 if high is None else high)


def box_mask(shape, *extents):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in extents)] = True
    return mask


def test_the_window_holds_mask_and_clicks_with_their_surroundings():
    grid = grid_round(box_mask((60, 100, 100), (20, 30), (40, 60), (40, 44)), [(35, 70, 40)])
    assert grid.window == (slice(12, 44), slice(24, 87), slice(32, 52)) and grid.shape == (32, 63, 20)


def test_the_window_ends_with_the_slices_that_may_change():
    grid = grid_round(box_mask((60, 40, 40), (20, 30), (10, 20), (10, 20)), [], low=18, high=31)
    assert grid.window[0] == slice(18, 32)


def test_large_windows_are_shrunk_to_cells_of_nearly_equal_sides(monkeypatch):
    monkeypatch.setattr(prompt_grid, "MOST_CELLS", 4000)
    grid = grid_round(box_mask((30, 128, 128), (5, 25), (20, 100), (20, 100)), [], spacing_mm=(4.0, 1.0, 1.0))
    assert np.prod(grid.shape) < 4600 and grid.spacing.max() < 1.3


def test_means_in_cells_and_back():
    mask = box_mask((24, 120, 120), (4, 20), (30, 90), (30, 90))
    grid = grid_round(mask, [])
    cells = grid.shrink(mask, 0, 1)
    assert cells.shape == grid.shape and cells.mean() == pytest.approx(mask[grid.window].mean(), abs=0.02)
    back = grid.enlarge(cells, 12 - grid.window[0].start) > 0.5
    assert (back != mask[(12, *grid.window[1:])]).mean() < 0.02


@given(st.data())
def test_a_click_lies_in_the_cell_of_its_voxel(data):
    shape = data.draw(st.tuples(*(st.integers(1, 60) for _ in range(3))))
    click = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    mask = np.zeros(shape, bool)
    mask[tuple(data.draw(st.integers(0, n - 1)) for n in shape)] = True
    grid = grid_round(mask, [click])
    voxel = np.zeros(shape, np.float32)
    voxel[click] = 1
    assert grid.shrink(voxel, 0, 1)[grid.cell(*click)] > 0
