"""Tests of the choice of trainable weights and of low-rank updates, which can be merged into a plain network."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lib.common.errors import OptionError
from lib.model.build import build
from lib.training.trainable_parts import LowRankUpdate, merged_state_dict, select_trainable_parts

FROZEN = ("image_encoder.", "sam_mask_decoder.conv_s0.", "sam_mask_decoder.conv_s1.")


def build_small_network():
    """Return the same small network at each call."""
    torch.manual_seed(0)
    return build("sam2_hiera_nano_256.yaml", image_size=64, training=True)


@pytest.fixture
def model():
    return build_small_network()


@pytest.fixture
def lora():
    model = build_small_network()
    select_trainable_parts(model, "lora", rank=3)
    return model


def randomize_first_update(model) -> str:
    """Set B of the first low-rank update to random numbers; return the name of its matrix."""
    name, module = next((n, m) for n, m in model.named_modules() if parametrize.is_parametrized(m))
    nn.init.normal_(module.parametrizations.weight[0].b)
    return f"{name}.weight"


def test_a_low_rank_update_matches_a_computation_by_hand():
    update = LowRankUpdate(torch.zeros(2, 3), rank=1)
    update.a.data = torch.tensor([[1.0, 2.0, 3.0]])
    weight = torch.ones(2, 3)
    assert torch.equal(update(weight), weight), "zero at the start"
    update.b.data = torch.tensor([[1.0], [-1.0]])
    assert update(weight).tolist() == [[2, 3, 4], [0, -1, -2]]


def test_decoder_freezes_the_weights_that_cached_features_depend_on(model):
    select_trainable_parts(model, "decoder")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(FROZEN), name
    assert any(n.startswith(FROZEN[2]) for n, _ in model.named_parameters())


def test_all_trains_every_weight(model):
    select_trainable_parts(model, "all")
    assert all(p.requires_grad for p in model.parameters())


def test_lora_trains_the_encoder_only_through_its_updates(lora):
    for name, parameter in lora.named_parameters():
        is_update = name.endswith((".weight.0.a", ".weight.0.b"))
        assert parameter.requires_grad == (is_update or not name.startswith(FROZEN)), name
    matrices = [n for n, m in lora.image_encoder.trunk.named_modules() if isinstance(m, nn.Linear)]
    assert matrices and all(parametrize.is_parametrized(lora.image_encoder.trunk.get_submodule(n)) for n in matrices)


def test_the_merged_state_is_the_original_before_any_step(model, lora):
    before, after = model.state_dict(), merged_state_dict(lora)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_the_merged_state_contains_the_update(model, lora):
    name = randomize_first_update(lora)
    update = lora.get_submodule(name.removesuffix(".weight")).parametrizations.weight[0]
    state = merged_state_dict(lora)
    torch.testing.assert_close(state[name] - model.state_dict()[name], (update.b @ update.a).detach(), atol=1e-5, rtol=1e-4)
    assert not any(t.requires_grad for t in state.values())


def test_a_plain_network_with_merged_weights_computes_the_same(model, lora):
    randomize_first_update(lora)
    images = torch.randn(1, 3, 64, 64)
    before = model.forward_image(images)["backbone_fpn"][-1]
    model.load_state_dict(merged_state_dict(lora))
    expected = lora.forward_image(images)["backbone_fpn"][-1]
    torch.testing.assert_close(model.forward_image(images)["backbone_fpn"][-1], expected)
    assert not torch.allclose(before, expected)


def test_the_merged_state_of_a_plain_network_is_its_state(model):
    state = merged_state_dict(model)
    assert state.keys() == model.state_dict().keys()
    model.load_state_dict(state)


def test_unknown_parts_are_refused(model):
    with pytest.raises(OptionError, match="decoder, lora, all"):
        select_trainable_parts(model, "everything")
