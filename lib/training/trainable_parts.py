"""Selection of the weights that are trained: all, all but the image encoder, or also low-rank updates (LoRA) of the encoder."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from lib.common.errors import OptionError

PARTS = ("decoder", "lora", "all")


class LowRankUpdate(nn.Module):
    """The parametrization W + B A of a weight matrix W (out, in), see Hu et al. 2021 (arXiv 2106.09685, eq. 3).

    A (rank, in) is random at the start and B (out, rank) zero, so that the network is unchanged at first.
    """

    def __init__(self, weight: torch.Tensor, rank: int):
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.b @ self.a


def select_trainable_parts(model: nn.Module, parts: str, rank: int = 8) -> None:
    """Freeze the parts of a SAM 2 network that are not to be trained; raise OptionError if `parts` is unknown.

    "all" freezes nothing. "decoder" freezes the image encoder and the decoder's two convolutions of its feature maps, so that cached
    features stay valid. "lora" also adds trainable updates of rank `rank` to the matrices of the encoder's attention and MLP layers.
    """
    if parts not in PARTS:
        raise OptionError(f"Unknown part {parts!r}: use {', '.join(PARTS)}.")
    if parts == "all":
        return
    decoder = model.sam_mask_decoder
    for module in (model.image_encoder, *(getattr(decoder, n) for n in ("conv_s0", "conv_s1") if hasattr(decoder, n))):
        module.requires_grad_(False)
    if parts == "lora":
        for module in list(model.image_encoder.trunk.blocks.modules()):
            if isinstance(module, nn.Linear):
                parametrize.register_parametrization(module, "weight", LowRankUpdate(module.weight, rank))


def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a network with its low-rank updates added to the matrices, as a network without updates loads it."""
    state = {k: v.detach() for k, v in model.state_dict().items() if ".parametrizations." not in k}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            state[f"{name}.weight"] = module.weight.detach()
    return state
