"""Build SAM 2 networks from configuration files, without Hydra's global state.

Any configuration of the `sam2` package (SAM 2, SAM 2.1, MedSAM2) or of this project works. Networks are plain `SAM2Base` objects (or, for
comparison, the official `SAM2VideoPredictor`) with random weights.
"""

from pathlib import Path

import sam2
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

CONFIG_DIRS = (Path(__file__).parent / "configs", Path(sam2.__path__[0]) / "configs")

# Settings that `sam2.build_sam.build_sam2_video_predictor` adds to every configuration for inference: the best of three masks replaces the
# single one when that is unstable, and clicked masks are remembered exactly as the user sees them.
_INFERENCE_SETTINGS = {
    "sam_mask_decoder_extra_args": {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
    "binarize_mask_from_pts_for_mem_enc": True,
}


def read_config(name: str) -> DictConfig:
    """Return the `model` node of a configuration.

    Args:
        name: Path relative to one of CONFIG_DIRS, for example "sam2.1/sam2.1_hiera_t.yaml".

    Raises:
        FileNotFoundError: There is no such configuration.
    """
    for folder in CONFIG_DIRS:
        path = folder / name
        if path.is_file():
            return OmegaConf.load(path).model
    raise FileNotFoundError(f"No SAM 2 configuration {name!r} in {[str(d) for d in CONFIG_DIRS]}.")


def build(name: str, *, image_size: int | None = None, training: bool = False, **overrides) -> SAM2Base:
    """Return a network with random weights, in evaluation mode unless `training`.

    Args:
        name: Configuration, see `read_config` (also for the error if there is none).
        image_size: Side of the square input in pixels, a multiple of 32. Default: the configuration's.
        training: Whether to build it in training mode and without the settings for inference.
        overrides: Further top-level settings of the configuration.
    """
    config = OmegaConf.merge({} if training else _INFERENCE_SETTINGS, read_config(name), overrides)
    if image_size:
        config.image_size = image_size
    model = instantiate(config, _recursive_=True)
    return model.train() if training else model.eval()


def build_official(name: str, **overrides) -> SAM2VideoPredictor:
    """Return the official `SAM2VideoPredictor` as `build_sam2_video_predictor` makes it, for parity tests and benchmarks.

    Hole filling is off, because it needs a CUDA extension that the wheel does not contain.
    """
    target = {"_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor", "fill_hole_area": 0}
    config = OmegaConf.merge(_INFERENCE_SETTINGS, read_config(name), target, overrides)
    return instantiate(config, _recursive_=True).eval()


def keep_decoder_in_float32(model: SAM2Base) -> SAM2Base:
    """Let the prompt encoder and mask decoder compute in full precision also under autocast, and return the same model.

    In bfloat16 the position of a click is only exact to a few pixels, and borders of masks move: the Dice per slice against full
    precision is 0.998. With the decoder in float32, which is a small part of the work, it is 0.999.
    """
    forward = model._forward_sam_heads

    def forward_in_float32(*args, **kwargs):
        device = next(a for a in (*args, *kwargs.values()) if torch.is_tensor(a)).device.type
        with torch.autocast(device, enabled=False):
            return forward(*(_to_float32(a) for a in args), **{k: _to_float32(v) for k, v in kwargs.items()})

    model._forward_sam_heads = forward_in_float32
    return model


def _to_float32(value):
    if isinstance(value, (list, tuple)):
        return [_to_float32(v) for v in value]
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value


def normalize(frames: torch.Tensor) -> torch.Tensor:
    """Return grey frames (..., H, W) in [0, 255] as the network's input (..., 3, H, W), with ImageNet's mean and deviation as in SAM 2."""
    mean = frames.new_tensor([0.485, 0.456, 0.406], dtype=torch.float32).view(3, 1, 1)
    std = frames.new_tensor([0.229, 0.224, 0.225], dtype=torch.float32).view(3, 1, 1)
    return (frames.float().unsqueeze(-3) / 255.0 - mean) / std
