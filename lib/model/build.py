"""Builds SAM 2 networks from configuration files, without Hydra's global state.

Any configuration of the `sam2` package (SAM 2, SAM 2.1, MedSAM2) or of this project works. Networks come out as
plain `SAM2Base` (or, for comparison, as the official `SAM2VideoPredictor`) with random weights.
"""

from pathlib import Path

import sam2
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

CONFIG_DIRS = (Path(__file__).parent / "configs", Path(sam2.__path__[0]) / "configs")

# The settings `sam2.build_sam.build_sam2_video_predictor` adds to every configuration for inference: fall back to the
# best of three masks when the single one is unstable, and remember clicked masks exactly as the user sees them.
_INFERENCE = {
    "sam_mask_decoder_extra_args": {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
    "binarize_mask_from_pts_for_mem_enc": True,
}


def read_config(name: str) -> DictConfig:
    """The `model` node of the configuration `name`, e.g. "sam2.1/sam2.1_hiera_t.yaml" (a relative path in CONFIG_DIRS).

    Raises:
        FileNotFoundError: no such configuration.
    """
    for folder in CONFIG_DIRS:
        path = folder / name
        if path.is_file():
            return OmegaConf.load(path).model
    raise FileNotFoundError(f"No SAM 2 configuration {name!r} in {[str(d) for d in CONFIG_DIRS]}.")


def build(name: str, *, image_size: int | None = None, training: bool = False, **overrides) -> SAM2Base:
    """A `SAM2Base` with random weights, in evaluation mode unless `training`.

    Args:
        name: configuration, see `read_config`.
        image_size: side of the square input in pixels, a multiple of 32; default: the configuration's.
        overrides: further top-level settings of the configuration.
    """
    config = OmegaConf.merge({} if training else _INFERENCE, read_config(name), overrides)
    if image_size:
        config.image_size = image_size
    model = instantiate(config, _recursive_=True)
    return model.train() if training else model.eval()


def build_official(name: str, **overrides) -> SAM2VideoPredictor:
    """The official `SAM2VideoPredictor` as `build_sam2_video_predictor` makes it (for parity tests and benchmarks).

    Hole filling is off: it needs a CUDA extension that the wheel does not contain.
    """
    target = {"_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor", "fill_hole_area": 0}
    config = OmegaConf.merge(_INFERENCE, read_config(name), target, overrides)
    return instantiate(config, _recursive_=True).eval()


def keep_decoder_in_float32(model: SAM2Base) -> SAM2Base:
    """The same model; under autocast its prompt encoder and mask decoder compute in full precision nevertheless.

    In bfloat16 a click is placed to a few pixels only, and a mask's border moves: per-slice Dice 0.998 against full precision,
    0.999 with exact heads, which are a small part of the work.
    """
    heads = model._forward_sam_heads

    def exact(*args, **kwargs):
        device = next(a for a in (*args, *kwargs.values()) if torch.is_tensor(a)).device.type
        with torch.autocast(device, enabled=False):
            return heads(*(_float(a) for a in args), **{k: _float(v) for k, v in kwargs.items()})

    model._forward_sam_heads = exact
    return model


def _float(value):
    if isinstance(value, (list, tuple)):
        return [_float(v) for v in value]
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value


def normalize(frames: torch.Tensor) -> torch.Tensor:
    """Grey frames (..., H, W) in [0, 255] to the network's input (..., 3, H, W), ImageNet mean and deviation as in SAM 2."""
    mean = frames.new_tensor([0.485, 0.456, 0.406], dtype=torch.float32).view(3, 1, 1)
    std = frames.new_tensor([0.229, 0.224, 0.225], dtype=torch.float32).view(3, 1, 1)
    return (frames.float().unsqueeze(-3) / 255.0 - mean) / std
