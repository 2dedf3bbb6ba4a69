"""The correction network that ships is the one that the code knows, and nothing else is loaded in its place."""

import pytest
import torch
from safetensors.torch import save_file

from lib.common.errors import CheckpointError
from lib.model import correction_network
from lib.model.correction_network import CHANNELS, CorrectionNetwork, load_corrections, load_embedded


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
        mask = load_embedded()(torch.cat([scaled[None], clicks, *[nothing] * 4])[None])[0] > 0
    assert 2 * (mask & (picture > 0)).sum() / (mask.sum() + 900) > 0.8


@pytest.mark.parametrize("content", [b"not a file of weights", b""])
def test_a_damaged_file_is_refused(tmp_path, monkeypatch, content):
    path = tmp_path / "corrections.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_corrections(path)
    monkeypatch.setattr(correction_network, "EMBEDDED_CORRECTIONS", path)
    with pytest.raises(CheckpointError, match="fetch the project's files again"):
        load_embedded()


def test_other_weights_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not hold weights of a correction network"):
        load_corrections(tmp_path / "other.safetensors")
