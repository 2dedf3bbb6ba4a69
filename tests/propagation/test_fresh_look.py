"""The look at slices without memory, with a network that is drawn by hand."""

import numpy as np
import torch

from lib.propagation.fresh_look import FRESH_WEIGHT, look_afresh


class Network:
    """Sees a square of 3 x 3 cells round each click."""

    class model:
        image_size = 32

    def __init__(self):
        self.slices, self.clicks_xy = None, None

    def decode(self, features, slices, clicks_xy):
        self.slices, self.clicks_xy = slices, clicks_xy
        masks = torch.full((len(slices), 1, 8, 8), -4.0)
        for mask, (x, y) in zip(masks, clicks_xy, strict=True):
            row, column = int(y // 4), int(x // 4)
            mask[0, row - 1 : row + 2, column - 1 : column + 2] = 4.0
        return {"pred_masks": masks}


def tracked(*boxes):
    logits = torch.full((len(boxes), 8, 8), -2.0)
    for row, box in zip(logits, boxes, strict=True):
        row[box] = 2.0
    return logits


def test_each_mask_is_clicked_where_it_is_deepest_and_mixed_with_what_the_slice_shows():
    network, logits = Network(), tracked(np.s_[1:4, 2:5], np.s_[0:0, 0:0], np.s_[3:8, 3:8])
    mixed = look_afresh(network, None, [5, 6, 7], logits)
    assert network.slices == [5, 7]
    np.testing.assert_array_equal(network.clicks_xy, [[13.5, 9.5], [21.5, 21.5]])
    assert torch.equal(mixed[1], logits[1]), "there is nothing to click on"
    assert mixed[0, 2, 3] == 2 + FRESH_WEIGHT * (4 - 2) and mixed[0, 7, 7] == -2 + FRESH_WEIGHT * (-4 + 2)
    assert mixed[2, 3, 3] == 2 + FRESH_WEIGHT * (-4 - 2), "the slice shows less than was tracked"


def test_without_any_mask_the_network_is_not_asked():
    network, logits = Network(), tracked(np.s_[0:0, 0:0])
    assert look_afresh(network, None, [1], logits) is logits and network.slices is None
