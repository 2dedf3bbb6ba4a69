"""The small networks that ship are the ones that the code knows, and nothing else is loaded in their place."""

import pytest
import torch
from safetensors.torch import save_file

from lib.common.errors import CheckpointError
from lib.model.correction_network import CORRECTION_NETWORK
from lib.model.side_networks import SideNetwork
from lib.model.tracking_network import TRACKING_NETWORK
from lib.model.volume_network import VOLUME_NETWORK

KINDS = [CORRECTION_NETWORK, TRACKING_NETWORK, VOLUME_NETWORK]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_ships_is_loaded(kind):
    network = kind.load_shipped()
    assert not network.training and all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_weights_of_another_network_are_refused(kind, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    for path in (tmp_path / "other.safetensors", *(k.path for k in KINDS if k is not kind)):
        with pytest.raises(CheckpointError, match=f"does not hold weights of a {kind.name}"):
            kind.load(path)


@pytest.mark.parametrize("content", [b"not a file of weights", b""])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "volume.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        VOLUME_NETWORK.load(path)


@pytest.mark.parametrize("exists", [True, False])
def test_another_file_than_the_one_that_ships_is_refused(tmp_path, monkeypatch, exists):
    path = tmp_path / "volume_network.safetensors"
    if exists:
        save_file(VOLUME_NETWORK.new().state_dict(), path)
    monkeypatch.setattr(SideNetwork, "path", path)
    with pytest.raises(CheckpointError, match="fetch the project's files again"):
        VOLUME_NETWORK.load_shipped()
