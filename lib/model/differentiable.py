"""Differentiable steps of SAM 2's forward pass for training: one frame at a time, with all four masks of the decoder.

`SAM2Base._forward_sam_heads` replaces the mask by -1024 where the object score says "absent". That has no gradient, so a model that starts
wrong never recovers. Here the caller decides where the object counts as present.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lib.model.build import normalize


@dataclass
class ClipFeatures:
    """Encoder output for one frame of every clip.

    Attributes:
        coarse: Feature map (B, C, h, w) at stride 16.
        high_res: Feature maps at strides 4 and 8.
        position: Position codes (B, C, h, w) of the coarse map.
    """

    coarse: torch.Tensor
    high_res: list[torch.Tensor]
    position: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the coarse map."""
        return tuple(self.coarse.shape[-2:])

    @property
    def sequence(self) -> torch.Tensor:
        """The coarse map as (H * W, B, C), as SAM 2's memory code takes it."""
        return self.coarse.flatten(2).permute(2, 0, 1)


@dataclass
class Prediction:
    """Decoder output of one frame.

    Attributes:
        masks: Logits (B, 4, h, w) at stride 4: the single mask, then the three alternatives.
        ious: Predicted IoU (B, 4).
        object_score: Logit (B, 1) of the probability that the object is there.
        chosen: Index (B,) of the mask that is used further.
        pointer: Object pointer (B, C).
    """

    masks: torch.Tensor
    ious: torch.Tensor
    object_score: torch.Tensor
    chosen: torch.Tensor
    pointer: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """Logits (B, 1, h, w) of the chosen mask."""
        return self.masks.gather(1, self.chosen.view(-1, 1, 1, 1).expand(-1, 1, *self.masks.shape[2:]))


def encode_clip(model, frames: torch.Tensor, rows: torch.Tensor) -> list[ClipFeatures]:
    """Encode clips.

    Args:
        frames: Grey frames (B, T, H, W) in [0, 255].
        rows: Index (R,) of the clip of each object.

    Returns:
        Features of R objects for each of the T frames.
    """
    b, t = frames.shape[:2]
    out = model.forward_image(normalize(frames.flatten(0, 1)))
    levels = [x.view(b, t, *x.shape[1:]) for x in out["backbone_fpn"][-3:]]
    position = out["vision_pos_enc"][-1][:1].expand(len(rows), -1, -1, -1)
    return [ClipFeatures(levels[2][:, i].index_select(0, rows), [x[:, i].index_select(0, rows) for x in levels[:2]], position) for i in range(t)]


def decode(model, features: ClipFeatures, conditioned: torch.Tensor, prompt, mask_logits=None, multimask=False):
    """Decode the masks of one frame.

    Args:
        conditioned: Features (B, C, h, w) of the frame, from `condition` or `unconditioned`.
        prompt: {"point_coords": (B, P, 2) pixels, "point_labels": (B, P)}, or None.
        mask_logits: Earlier logits (B, 1, 4h, 4w) to start from, or None.
        multimask: Whether to choose among the three alternatives by predicted IoU instead of taking the single mask.
    """
    b = len(conditioned)
    if prompt is None:
        points = (torch.zeros(b, 1, 2, device=conditioned.device), -torch.ones(b, 1, dtype=torch.int32, device=conditioned.device))
    else:
        points = (prompt["point_coords"], prompt["point_labels"])
    with torch.autocast(conditioned.device.type, enabled=False):  # In bfloat16 the position of a click is only exact to a few pixels.
        sparse, dense = model.sam_prompt_encoder(points=points, boxes=None, masks=None if mask_logits is None else mask_logits.float())
    masks, ious, tokens, score = model.sam_mask_decoder.predict_masks(
        image_embeddings=conditioned,
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=features.high_res,
    )
    chosen = ious[:, 1:].argmax(1) + 1 if multimask else torch.zeros(b, dtype=torch.long, device=masks.device)
    token = tokens.gather(1, chosen.view(-1, 1, 1).expand(-1, 1, tokens.shape[2]))[:, 0]
    return Prediction(masks.float(), ious.float(), score.float(), chosen, model.obj_ptr_proj(token))


def unconditioned(model, features: ClipFeatures) -> torch.Tensor:
    """Return the features (B, C, h, w) of a frame that has no memory to attend to."""
    return features.coarse + model.no_mem_embed.view(1, -1, 1, 1)


def condition(model, features: ClipFeatures, frame: int, memories: dict) -> torch.Tensor:
    """Return the features (B, C, h, w) of a frame after memory attention.

    Args:
        frame: Virtual time of the frame.
        memories: SAM 2's output dictionary, see `lib.model.memory_entries.select_rows`.
    """
    return model._prepare_memory_conditioned_features(
        frame_idx=frame,
        is_init_cond_frame=False,
        current_vision_feats=[features.sequence],
        current_vision_pos_embeds=[features.position.flatten(2).permute(2, 0, 1)],
        feat_sizes=[features.size],
        output_dict=memories,
        num_frames=1 << 20,
        track_in_reverse=False,
    )


def remember(model, features: ClipFeatures, mask_logits: torch.Tensor, pointer: torch.Tensor, present: torch.Tensor):
    """Return the memory entry of a frame, as SAM 2 keeps it.

    Args:
        mask_logits: Logits (B, 1, h, w) at any resolution.
        pointer: Object pointer (B, C).
        present: Bool (B,), whether the object counts as present on the frame.
    """
    size = (model.image_size, model.image_size)
    logits = F.interpolate(mask_logits.float(), size, mode="bilinear", align_corners=False)
    gate = present[:, None, None, None]
    logits = torch.where(gate, logits, torch.full_like(logits, -1024.0))
    score = torch.where(present, 10.0, -10.0)[:, None].to(logits.device)
    memory, position = model._encode_new_memory(
        current_vision_feats=[features.sequence],
        feat_sizes=[features.size],
        pred_masks_high_res=logits,
        object_score_logits=score,
        is_mask_from_pts=False,
    )
    keep = present.to(pointer.dtype)[:, None]
    pointer = keep * pointer + (1 - keep) * model.no_obj_ptr
    return {"maskmem_features": memory, "maskmem_pos_enc": position, "obj_ptr": pointer}


def mask_prompt(model, features: ClipFeatures, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a painted mask (B, H, W) as SAM 2 takes it: logits of +-10, (B, 1, H, W), and the object pointer that it gives."""
    target = masks[:, None].float()
    logits = model.mask_downsample(target)
    if logits.shape[-2:] != model.sam_prompt_encoder.mask_input_size:
        logits = F.interpolate(logits, model.sam_prompt_encoder.mask_input_size, mode="bilinear", antialias=True)
    return target * 20 - 10, decode(model, features, features.coarse, None, logits).pointer
