"""Which part of a network learns: all of it, all but the encoder, or the encoder through low-rank updates (LoRA)."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from lib.common.errors import OptionError

PARTS = ("decoder", "lora", "all")


class LowRank(nn.Module):
    """W + B A with A (rank, in) random and B (out, rank) zero at the start (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

    def __init__(self, weight: torch.Tensor, rank: int):
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.b @ self.a


def choose_parts(model: nn.Module, parts: str, rank: int = 8) -> None:
    """Sets what of a SAM 2 network learns.

    "decoder" freezes the image encoder and the decoder's two convolutions on its maps, so features that were cached stay
    valid. "lora" adds trainable low-rank updates to the encoder's attention and MLP matrices besides.

    Raises:
        OptionError: unknown `parts`.
    """
    if parts not in PARTS:
        raise OptionError(f"Unknown part {parts!r}: use {', '.join(PARTS)}.")
    if parts == "all":
        return
    decoder = model.sam_mask_decoder
    frozen = [model.image_encoder, *(getattr(decoder, n) for n in ("conv_s0", "conv_s1") if hasattr(decoder, n))]
    for module in frozen:
        module.requires_grad_(False)
    if parts == "lora":
        for module in list(model.image_encoder.trunk.blocks.modules()):
            if isinstance(module, nn.Linear):
                parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def merged(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of the network as if it had never had low-rank updates: they are added to the matrices."""
    state = {k: v.detach() for k, v in model.state_dict().items() if ".parametrizations." not in k}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            state[f"{name}.weight"] = module.weight.detach()
    return state
