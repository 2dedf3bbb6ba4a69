"""Candidate masks that SAM 2's mask decoder proposes for one slice from its prompt alone."""

import numpy as np
import torch

from lib.engine.options import Options
from lib.imaging.frames import Frames
from lib.model import checkpoints, device
from lib.model.features import SliceFeatures
from lib.prompts.volume_prompts import SlicePrompt


class DecoderCandidates:
    """The three masks of the decoder's multi-mask output, between which Dong et al. 2024 choose.

    It works for any prompt, whereas tracking asks for several masks only after a single click. It loads a network of its own, so that
    it does not depend on an engine.
    """

    def __init__(self, options: Options):
        self._device = device.resolve_device(options.device)
        self._model = checkpoints.load(checkpoints.find(options.checkpoint)).to(self._device)
        self._autocast = device.autocast_factory(self._device)
        self._features: SliceFeatures | None = None

    @torch.inference_mode()
    def __call__(self, frames: Frames, t: int, prompt: SlicePrompt) -> tuple[np.ndarray, np.ndarray]:
        """Return the masks of slice t, bool (3, Y, X), in the order of the decoder's channels, and their predicted IoU (3,)."""
        if self._features is None or self._features.frames is not frames:
            self._features = SliceFeatures(self._model, frames, self._device, self._autocast, 1)
        features, model = self._features, self._model
        with self._autocast():
            levels, positions, sizes = features.gather([t])
            fine = [x.permute(1, 2, 0).reshape(1, x.shape[2], *s) for x, s in zip(levels[:-1], sizes[:-1], strict=True)]
            fused = model._prepare_memory_conditioned_features(
                frame_idx=0, is_init_cond_frame=True, current_vision_feats=levels[-1:], current_vision_pos_embeds=positions[-1:],
                feat_sizes=sizes[-1:], output_dict={}, num_frames=1,
            )  # fmt: skip
            points = {
                "point_coords": torch.as_tensor(features.to_square(prompt.points), dtype=torch.float32, device=self._device)[None],
                "point_labels": torch.as_tensor(prompt.labels, dtype=torch.int32, device=self._device)[None],
            }
            logits, _, iou, *_ = model._forward_sam_heads(
                backbone_features=fused, point_inputs=points, high_res_features=fine or None, multimask_output=True
            )
        return (features.to_slices(logits[0].float()) > 0).cpu().numpy(), iou[0].float().cpu().numpy()
