"""The mask file of an answer."""

import os

import numpy as np
import pytest

from lib.engine.result import Result
from lib.imaging.readers import read_volume
from lib.imaging.volume import Volume
from lib.serving.dicomweb.viewer_grid import VIEWER_REQUEST, viewer_grid
from lib.serving.inference.answer import write_result

SHAPE = (5, 6, 7)
REVERSED = np.diag([-2.0, 2, 3, 1])  # A viewer counts the slices of such an image the other way round.


@pytest.mark.parametrize("filled", [(slice(1, 3), slice(2, 6), slice(4, 5)), (slice(0),) * 3], ids=["a box", "nothing"])
@pytest.mark.parametrize("by_viewer", [False, True])
def test_a_cropped_mask_lies_where_the_answer_says(filled, by_viewer):
    mask = np.zeros(SHAPE, bool)
    mask[filled] = True
    volume, request = Volume(np.zeros(SHAPE, np.int16), REVERSED), {"result_crop": True, VIEWER_REQUEST: by_viewer}
    path, fields = write_result(Result(mask, 2, ()), volume, request, ".nrrd")
    try:
        cropped = read_volume(path)
    finally:
        os.unlink(path)
    offset = fields["result_offset"]
    whole = np.zeros(SHAPE, bool)
    whole[tuple(slice(o, o + n) for o, n in zip(offset, cropped.shape, strict=True))] = cropped.array
    np.testing.assert_array_equal(whole, mask[:, :, ::-1] if by_viewer else mask)
    assert cropped.shape == ((2, 4, 1) if mask.any() else (1, 1, 1))
    affine = viewer_grid(volume.grid).affine if by_viewer else REVERSED
    np.testing.assert_allclose(cropped.affine[:3, 3], (affine @ [*offset, 1])[:3])
