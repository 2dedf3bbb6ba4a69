"""The volume network takes grids of any size."""

import pytest
import torch

from lib.model import volume_network
from lib.model.volume_network import CHANNELS, VOLUME_NETWORK, VolumeNetwork


@pytest.mark.parametrize("size", [(8, 16, 16), (1, 1, 1), (5, 9, 31), (40, 2, 3)])
def test_logits_have_the_size_of_the_grid(size):
    assert VOLUME_NETWORK.load_shipped()(torch.zeros(2, CHANNELS, *size)).shape == (2, *size)


def test_without_training_the_mask_stays():
    inputs = torch.randn(1, CHANNELS, 6, 9, 11)
    assert ((VolumeNetwork()(inputs) > 0) == (inputs[:, 1] > 0)).all()


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_in_2d_equals_that_in_3d(bias):
    layer, x = volume_network._Convolution(3, 5, bias), torch.randn(2, 3, 1, 6, 7)
    for inputs in (x, torch.randn(2, 3, 4, 5, 6)):
        assert torch.allclose(layer(inputs), torch.nn.functional.conv3d(inputs, layer.weight, layer.bias, padding=1), atol=1e-5)
