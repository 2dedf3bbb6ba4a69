"""The same network, in the same precision, by quicker routines where there are any.

PyTorch multiplies float32 matrices with MKL, which reaches half of what an AMD CPU with AVX-512 can do. oneDNN, which PyTorch contains
as well, reaches it on CPUs of both makes. It takes longer to begin, so only the large products go through it: those of the image
encoder, the memory attention and the memory encoder, not those with the few tokens of the mask decoder. A convolution of single pixels
is such a product as well. What SAM 2 computes anew for every slice although it is always the same (position codes) is kept, and what it
does in many small steps (norms over channels, activations) is done in one: threads that run side by side wait for Python between any
two of them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention, apply_rotary_enc
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import MLP, LayerNorm2d

PARTS = ("image_encoder", "memory_attention", "memory_encoder")
LEVELS = ("conv_s0", "conv_s1")  # of the mask decoder, belong to the encoding of a slice
SCORES = 4 << 20  # bytes of attention scores up to which they are made at once


def available() -> bool:
    """Whether this CPU has AVX-512."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def quicken(model: SAM2Base) -> SAM2Base:
    """The same model, whose forward passes take less time on a CPU with AVX-512, in float32 and inference mode; else as they
    are, and where they are compiled. A slice then comes out the same to the last digit whether alone or with others."""
    if available():
        levels = [getattr(model.sam_mask_decoder, name) for name in LEVELS if hasattr(model.sam_mask_decoder, name)]
        for part in [*(getattr(model, name) for name in PARTS), *levels]:
            for module in part.modules():
                if type(module) in QUICK:
                    module.forward = _either(module.forward, QUICK[type(module)](module))
                if isinstance(module, Hiera):
                    module._get_pos_embed = _kept(module._get_pos_embed)
        for module in (*model.sam_mask_decoder.modules(), model.obj_ptr_proj):
            if type(module) in SAME:
                module.forward = _either(module.forward, SAME[type(module)](module))
    return model


def _either(usual: Callable, quick: Callable) -> Callable:
    """`quick`, which may return None where it does not apply, or what is usual."""

    def forward(*args, **kwargs):
        found = quick(*args, **kwargs) if _suits(args[0] if args else next(iter(kwargs.values()))) else None
        return usual(*args, **kwargs) if found is None else found

    return forward


def _suits(x: torch.Tensor) -> bool:
    if torch.compiler.is_compiling():  # which has routines of its own
        return False
    exact = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return exact and x.device.type == "cpu" and torch.is_inference_mode_enabled()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, then: str = "none") -> torch.Tensor:
    """`F.linear` by oneDNN: x (..., C), weight (D, C), bias (D,); `then` an activation, "relu" or "gelu"."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none" if then == "gelu" else "")


def _linear(layer: torch.nn.Linear) -> Callable:
    return lambda x: product(x, layer.weight, layer.bias)


def _convolution(layer: torch.nn.Conv2d) -> Callable:
    """Of single pixels."""
    single = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1 and not any(layer.padding)

    def forward(x):
        return product(x.permute(0, 2, 3, 1), layer.weight[:, :, 0, 0], layer.bias).permute(0, 3, 1, 2) if single else None

    return forward


def _mlp(mlp: MLP) -> Callable:
    then = {torch.nn.GELU: "gelu", torch.nn.ReLU: "relu"}.get(type(mlp.act))

    def forward(x):
        if then is None or mlp.sigmoid_output:
            return None
        *hidden, last = mlp.layers
        for layer in hidden:
            x = product(x, layer.weight, layer.bias, then)
        return last(x)

    return forward


def _row_by_row(mlp: MLP) -> Callable:
    """Of single tokens (B, C): a product with one row is computed otherwise than one with two."""
    forward = mlp.forward
    return lambda x: torch.cat([forward(row) for row in x.split(1)]) if x.ndim == 2 and len(x) > 1 else None


def _norm_of_channels(norm: LayerNorm2d) -> Callable:
    return lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)


def _position(codes: PositionEmbeddingSine) -> Callable:
    def forward(x):
        known = codes.cache.get(tuple(x.shape[-2:]))
        return None if known is None else known.to(x.device).expand(len(x), -1, -1, -1)

    return forward


def _rope_attention(layer: RoPEAttention) -> Callable:
    """Of one head, as in the memory attention; of a few runs one after the other."""

    def forward(q, k, v, num_k_exclude_rope=0):
        (b, n, _), keys = q.shape, k.shape[1]
        if layer.num_heads > 1 or n != len(layer.freqs_cis) or n * keys * q.element_size() > SCORES:
            return None
        q, k, v = layer.q_proj(q)[:, None], layer.k_proj(k)[:, None], layer.v_proj(v)
        turned = keys - num_k_exclude_rope
        q, k[:, :, :turned] = apply_rotary_enc(q, k[:, :, :turned], layer.freqs_cis, layer.rope_k_repeat)
        q, seen = q * q.shape[-1] ** -0.5, []
        for run in range(b):
            scores = product(q[run, 0], k[run, 0])
            seen.append(product(torch.softmax(scores, -1, out=scores), v[run].T))
        return layer.out_proj(torch.stack(seen))

    return forward


def _kept(function: Callable) -> Callable:
    """Remembers what a function of a size returned last, in inference mode."""
    last = {}

    def of(size):
        if not torch.is_inference_mode_enabled():
            return function(size)
        if tuple(size) not in last:
            last.clear()
            last[tuple(size)] = function(size)
        return last[tuple(size)]

    return of


QUICK = {
    torch.nn.Linear: _linear,
    torch.nn.Conv2d: _convolution,
    MLP: _mlp,
    LayerNorm2d: _norm_of_channels,
    PositionEmbeddingSine: _position,
    RoPEAttention: _rope_attention,
}
SAME = {LayerNorm2d: _norm_of_channels, MLP: _row_by_row}  # in the mask decoder
