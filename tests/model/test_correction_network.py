"""The correction network takes squares of several sizes, and the one that ships follows a click."""

import pytest
import torch

from lib.model.correction_network import CHANNELS, CORRECTION_NETWORK, CorrectionNetwork


@pytest.mark.parametrize("side", [96, 64])
def test_logits_have_the_size_of_the_input(side):
    assert CorrectionNetwork()(torch.zeros(2, CHANNELS, side, side)).shape == (2, side, side)


def test_the_network_that_ships_follows_a_click():
    picture = torch.zeros(96, 96)
    picture[30:60, 40:70] = 1.0
    clicks = torch.zeros(2, 96, 96)
    rows, columns = torch.arange(96.0)[:, None] - 45, torch.arange(96.0) - 55
    squares = rows**2 + columns**2
    clicks[0], clicks[1] = torch.exp(-squares / 8), torch.exp(-squares.sqrt() / 12)
    scaled = (picture - picture.mean()) / picture.std()
    nothing = torch.zeros(1, 96, 96)
    with torch.inference_mode():
        mask = CORRECTION_NETWORK.load_shipped()(torch.cat([scaled[None], clicks, *[nothing] * 4])[None])[0] > 0
    assert 2 * (mask & (picture > 0)).sum() / (mask.sum() + 900) > 0.8
