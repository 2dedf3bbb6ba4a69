import numpy as np

from lib.engine.request import parse_options, parse_prompts
from lib.imaging.geometry import LPS_FROM_RAS, to_mm
from lib.imaging.volume import Grid, Volume
from lib.serving.dicomweb.viewer_grid import (
    VIEWER_REQUEST,
    displayed_grid,
    from_viewer,
    is_reversed,
    mask_from_viewer,
    mask_to_viewer,
    request_from_viewer,
    to_viewer,
    viewer_grid,
)
from tests.imaging.real_cases import tilted_affine

SHAPE = (5, 6, 7)
LEFT_HANDED = np.diag([-1.0, 1.0, 2.0, 1.0])


def test_the_viewer_counts_along_the_normal_of_the_slices(affine):
    grid = Grid(SHAPE, affine)
    viewed = viewer_grid(grid)
    x, y, z = (LPS_FROM_RAS @ viewed.affine)[:3, :3].T
    assert np.cross(x, y) @ z > 0 and viewed.shape == SHAPE
    voxels = np.array(list(np.ndindex(SHAPE)))
    np.testing.assert_allclose(to_mm(viewed.affine, to_viewer(grid, voxels)), to_mm(affine, voxels), atol=1e-9)
    np.testing.assert_array_equal(from_viewer(grid, to_viewer(grid, voxels)), voxels)
    mask = np.random.default_rng(0).random(SHAPE) > 0.5
    np.testing.assert_array_equal(mask_to_viewer(grid, mask)[tuple(to_viewer(grid, voxels).T)], mask[tuple(voxels.T)])
    np.testing.assert_array_equal(mask_from_viewer(grid, mask_to_viewer(grid, mask)), mask)


def test_ohif_draws_no_shear(affine):
    grid = Grid(SHAPE, affine)
    np.testing.assert_allclose(displayed_grid(grid).affine, affine, atol=1e-9)
    tilted = Grid((96, 90, 32), LPS_FROM_RAS @ tilted_affine(20.0))
    x, y, step = (LPS_FROM_RAS @ tilted.affine)[:3, :3].T
    lps = LPS_FROM_RAS @ displayed_grid(tilted).affine
    np.testing.assert_allclose(lps[:3, :2].T, [x, y])
    np.testing.assert_allclose(lps[:3, 3], (LPS_FROM_RAS @ tilted.affine)[:3, 3])
    np.testing.assert_allclose(lps[:3, 2], 3 * np.cos(np.deg2rad(20)) * np.array([0, 0.34202014, 0.93969262]), atol=1e-6)  # as OHIF v3 says
    mirrored = viewer_grid(Grid(SHAPE, tilted.affine @ np.diag([1.0, 1, -1, 1])))
    assert mirrored.shape == SHAPE and not is_reversed(mirrored.affine)


def test_requests_are_turned_only_if_they_come_from_a_viewer_and_the_image_is_left_handed():
    request = {"foreground": [[1, 2, 0]], "background": "[[3, 3, 6]]", "boxes": [[[1, 1, 1], [2, 2, 2]]], "roi": [0, 4, 0, 5, 1, 3],
               "absent": [5], "mask_slices": [], "slice": 1, VIEWER_REQUEST: True}  # fmt: skip
    volume = Volume(np.zeros(SHAPE), LEFT_HANDED)
    turned = request_from_viewer(request, volume, "auto")
    assert is_reversed(LEFT_HANDED) and turned == request | {
        "foreground": [[1, 2, 6]], "background": [[3, 3, 0]], "boxes": [[[1, 1, 5], [2, 2, 4]]], "roi": [0, 4, 0, 5, 5, 3],
        "absent": [1], "slice": 5,
    }  # fmt: skip
    assert request_from_viewer({**request, VIEWER_REQUEST: False}, volume, "auto")["foreground"] == [[1, 2, 0]]
    assert request_from_viewer(request, Volume(np.zeros(SHAPE), np.diag([-1.0, -1, 2, 1])), "auto") == request
    sideways = request_from_viewer(request, volume, "0")
    assert sideways["foreground"] == [[1, 2, 6]] and sideways["absent"] == [5], "slices along i are counted alike"


def test_what_is_no_number_reaches_the_parser_of_requests():
    volume = Volume(np.zeros(SHAPE), LEFT_HANDED)
    request = {"foreground": "nonsense", "background": [[1, 2]], "roi": ["a", 0, 0, 0, 0, 0], "absent": 3, VIEWER_REQUEST: True}
    turned = request_from_viewer(request, volume, "auto")
    assert turned["foreground"] == "nonsense" and turned["background"] == [[1, 2]] and turned["absent"] == 3
    turned = request_from_viewer({"foreground": [[1, 2, 0]], VIEWER_REQUEST: True}, volume, "auto")
    prompts = parse_prompts(turned, volume, parse_options(turned))
    assert [tuple(map(int, p)) for p in prompts.positive] == [(1, 2, 6)]
