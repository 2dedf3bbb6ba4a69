"""Preparations of a network for training: initial weights and the optimizer."""

import torch
from torch import nn


def adapt_random_weights(model: nn.Module) -> None:
    """Change the random weights of a new SAM 2 network such that training does not stall.

    Query and key projections of the cross-attention from prompt tokens to the image become equal, so tokens find their positions in the
    image at once. The object score is positive at first, so objects count as present until the model has learned when they are not.
    """
    decoder = model.sam_mask_decoder
    layers = [layer.cross_attn_token_to_image for layer in decoder.transformer.layers]
    with torch.no_grad():
        for attention in [*layers, decoder.transformer.final_attn_token_to_image]:
            attention.q_proj.weight.mul_(2.7)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
        decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Return an AdamW optimizer of the trainable weights, with weight decay for matrices but not for biases and norms."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98))
