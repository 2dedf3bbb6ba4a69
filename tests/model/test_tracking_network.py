"""The tracking network takes squares of several sizes, and the one that ships has learned to track."""

import numpy as np
import pytest
import torch

from lib.imaging.metrics import dice
from lib.model.tracking_network import CHANNELS, TRACKING_NETWORK, TrackingNetwork


@pytest.mark.parametrize("side", [96, 64])
def test_logits_have_the_size_of_the_input(side):
    assert TrackingNetwork()(torch.zeros(2, CHANNELS, side, side)).shape == (2, side, side)


def disc(x):
    rows, columns = torch.arange(96.0)[:, None] - 48, torch.arange(96.0) - x
    return rows**2 + columns**2 <= 14**2


def test_the_network_that_ships_follows_a_disc_that_moves():
    before, now = disc(46), disc(52)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 96, 96))).float()
    pictures = torch.stack([now, before]).float() + noise
    pictures = (pictures - pictures[1].mean()) / pictures[1].std()
    signs, nothing, first_step = before * 2.0 - 1, torch.zeros(96, 96), torch.full((96, 96), 1.1)
    inputs = torch.stack([*pictures, torch.tanh(signs * 4 / 3), pictures[1], signs, nothing, nothing, nothing, first_step])
    with torch.inference_mode():
        found = (TRACKING_NETWORK.load_shipped()(inputs[None])[0] > 0).numpy()
    assert dice(found, now.numpy()) > dice(before.numpy(), now.numpy()) + 0.05
