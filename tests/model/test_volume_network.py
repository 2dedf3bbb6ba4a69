"""The volume network that ships is the one that the code knows, and takes grids of any size."""

import pytest
import torch
from safetensors.torch import save_file

from lib.common.errors import CheckpointError
from lib.model import volume_network
from lib.model.volume_network import CHANNELS, VolumeNetwork, load_embedded, load_volume_network


@pytest.mark.parametrize("size", [(8, 16, 16), (1, 1, 1), (5, 9, 31), (40, 2, 3)])
def test_logits_have_the_size_of_the_grid(size):
    assert load_embedded()(torch.zeros(2, CHANNELS, *size)).shape == (2, *size)


def test_without_training_the_mask_stays():
    inputs = torch.randn(1, CHANNELS, 6, 9, 11)
    assert ((VolumeNetwork()(inputs) > 0) == (inputs[:, 1] > 0)).all()


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_in_2d_equals_that_in_3d(bias):
    layer, x = volume_network._Convolution(3, 5, bias), torch.randn(2, 3, 1, 6, 7)
    for inputs in (x, torch.randn(2, 3, 4, 5, 6)):
        assert torch.allclose(layer(inputs), torch.nn.functional.conv3d(inputs, layer.weight, layer.bias, padding=1), atol=1e-5)


@pytest.mark.parametrize("content", [b"not a file of weights", b""])
def test_a_damaged_file_is_refused(tmp_path, monkeypatch, content):
    path = tmp_path / "volume.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_volume_network(path)
    monkeypatch.setattr(volume_network, "EMBEDDED_VOLUME_NETWORK", path)
    with pytest.raises(CheckpointError, match="fetch the project's files again"):
        load_embedded()


def test_other_weights_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not hold weights of a volume network"):
        load_volume_network(tmp_path / "other.safetensors")
