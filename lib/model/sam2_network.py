"""One call of SAM 2's network at a time: decode slices with prompts and memories, and encode the memory of a slice."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from lib.model.features import SliceFeatures
from lib.prompts.volume_prompts import SlicePrompt

ABSENT_LOGIT = -1024.0  # SAM 2's mask logit for "the object is not on this frame".
FAR_END_TIME = 10**6  # Virtual time of a gap's far end: the future, whose object pointers SAM 2 does not use.
NO_MEMORIES: dict = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}


class Sam2Network:
    """A `SAM2Base` on its device, called through its own `track_step`. It keeps no state between calls.

    Args:
        model: `SAM2Base` in evaluation mode on its device.
        autocast: Function without arguments that makes the context manager for each call.
    """

    def __init__(self, model, autocast: Callable):
        self.model, self.autocast = model, autocast

    @property
    def mask_side(self) -> int:
        """Side in pixels of the masks that the decoder returns."""
        return self.model.image_size // 4

    @property
    def memory_span(self) -> int:
        """Number of past steps whose memories a step may look at."""
        stride = max(1, self.model.memory_temporal_stride_for_eval)
        return max(self.model.num_maskmem * stride + 1, self.model.max_obj_ptrs_in_encoder)

    @torch.inference_mode()
    def decode(
        self, features: SliceFeatures, slices: Sequence[int], *, prompt: SlicePrompt | None = None, clicks_xy: torch.Tensor | None = None,
        start_logits: torch.Tensor | None = None, memories: dict | None = None, time: int = 0, remember: bool = False,
        refine_logits: Callable | None = None, adjust_scores: Callable | None = None,
    ) -> dict:  # fmt: skip
        """Decode a batch of slices at the same virtual time, by one call of SAM 2's `track_step`.

        Args:
            slices: Slice indices, one for each row of the batch.
            prompt: Clicks and boxes on the only slice, or None.
            clicks_xy: Instead of it, one click inside on each slice, float (B, 2) in pixels of the square.
            start_logits: Mask logits (B, 1, h, w) to start from, or None.
            memories: SAM 2's output dictionary with one row for each slice; None decodes without memory.
            time: Virtual time of the step; memories carry theirs.
            remember: Whether to encode the memory of the result, too.
            refine_logits: Maps logits (B, h, w) to those that are returned and remembered.
            adjust_scores: Maps object scores (B,) and logits (B, h, w) to the scores that count. Where these are negative, the
                object counts as absent.

        Returns:
            SAM 2's output with "pred_masks" (B, 1, h, w) logits, "object_score_logits" (B, 1), "iou" (B,) the predicted IoU,
            "candidates" (B, M, h, w) the logits of all alternatives, "obj_ptr", and with `remember` the memory.
        """
        with self.autocast():
            maps, positions, sizes = features.gather(slices)
            points = None if prompt is None else self._points(features, prompt)
            if clicks_xy is not None:
                labels = torch.ones(len(clicks_xy), 1, dtype=torch.int32, device=clicks_xy.device)
                points = {"point_coords": clicks_xy[:, None], "point_labels": labels}
            output, heads_output, _, _ = self.model._track_step(
                frame_idx=time, is_init_cond_frame=memories is None, current_vision_feats=maps, current_vision_pos_embeds=positions,
                feat_sizes=sizes, point_inputs=points, mask_inputs=None, output_dict=memories or NO_MEMORIES, num_frames=2 * FAR_END_TIME,
                track_in_reverse=False, prev_sam_mask_logits=start_logits,
            )  # fmt: skip
            candidates, _, ious, low_res, high_res, pointer, score = heads_output
            if refine_logits is not None:
                low_res = refine_logits(low_res[:, 0])[:, None].to(low_res)
                high_res = F.interpolate(low_res.float(), high_res.shape[-2:], mode="bilinear", align_corners=False).to(high_res)
            if adjust_scores is not None:
                score = adjust_scores(score[:, 0].float(), low_res[:, 0])[:, None].to(score)
                absent = score <= 0
                low_res, high_res = (x.masked_fill(absent[:, :, None, None], ABSENT_LOGIT) for x in (low_res, high_res))
                pointer = torch.where(absent, self.model.no_obj_ptr.to(pointer), pointer)
            output.update(pred_masks=low_res, obj_ptr=pointer, object_score_logits=score, iou=ious.float().amax(1), candidates=candidates)
            if remember:
                self.model._encode_memory_in_output(maps, sizes, points, True, high_res, score, output)
                output["maskmem_features"] = output["maskmem_features"].to(torch.bfloat16)
        return output

    @torch.inference_mode()
    def take_painted(self, features: SliceFeatures, t: int, mask) -> dict:
        """Take slice `t` as painted, bool (Y, X), as SAM 2 takes mask prompts. Return the same as `decode`, but no "candidates"."""
        with self.autocast():
            maps, positions, sizes = features.gather([t])
            output, heads_output, _, _ = self.model._track_step(
                frame_idx=0, is_init_cond_frame=True, current_vision_feats=maps, current_vision_pos_embeds=positions, feat_sizes=sizes,
                point_inputs=None, mask_inputs=features.mask_to_square(mask), output_dict=NO_MEMORIES, num_frames=2 * FAR_END_TIME,
                track_in_reverse=False, prev_sam_mask_logits=None,
            )  # fmt: skip
            _, _, _, low_res, _, pointer, score = heads_output
            output.update(pred_masks=low_res, obj_ptr=pointer, object_score_logits=score.float(), iou=torch.ones(1))
        return output

    @torch.inference_mode()
    def encode_prompted_memory(self, features: SliceFeatures, t: int, output: dict, slice_logits: torch.Tensor | None = None) -> dict:
        """Return the memory entry of a prompted slice, encoded as the official predictor does before it propagates.

        Args:
            output: The output of `decode` or `take_painted` for slice `t`.
            slice_logits: Logits (Y, X) of the slice's own pixels to encode instead of the output's.
        """
        side = self.model.image_size
        with self.autocast():
            maps, _, sizes = features.gather([t])
            if slice_logits is None:
                logits = F.interpolate(output["pred_masks"].float(), (side, side), mode="bilinear", align_corners=False)
            else:
                logits = features.from_slices(slice_logits[None], side)
            memory, position = self.model._encode_new_memory(maps, sizes, logits, output["object_score_logits"], True)
        # The official predictor keeps memories in bfloat16, too.
        return {"maskmem_features": memory.to(torch.bfloat16), "maskmem_pos_enc": position, "obj_ptr": output["obj_ptr"]}

    def _points(self, features: SliceFeatures, prompt: SlicePrompt) -> dict:
        """Return a prompt's clicks and box corners as SAM 2 takes them, in pixels of the square."""
        xy = torch.as_tensor(features.to_square(prompt.points), dtype=torch.float32, device=features.device)
        labels = torch.as_tensor(prompt.labels, dtype=torch.int32, device=features.device)
        return {"point_coords": xy[None], "point_labels": labels[None]}
