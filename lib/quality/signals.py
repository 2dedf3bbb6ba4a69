"""Compute signals of tracking and of the image that tell how good the mask of a slice is without a reference."""

from collections.abc import Sequence

import numpy as np

SIGNALS = (
    "predicted_iou", "presence", "distance", "nearness", "change", "area_ratio", "overlap", "worst_iou", "agreement", "has_two_passes",
    "likeness", "worst_likeness", "correlation", "mask_nearness", "end_area", "end_area_near", "correlation_near", "likeness_near",
    "reach", "reach_near",
)  # fmt: skip


def nearest_annotated(total: int, annotated: Sequence[int]) -> np.ndarray:
    """Return for each of `total` slices the nearest annotated slice, int (T,); of two equally near ones the lower."""
    order = np.asarray(sorted(annotated))
    return order[np.abs(np.arange(total)[:, None] - order).argmin(1)]


def neighbours_outward(total: int, annotated: Sequence[int]) -> list[tuple[int, int]]:
    """Return (slice, its neighbour towards the nearest annotated slice) for all slices that are not annotated, the nearest first."""
    t, nearest = np.arange(total), nearest_annotated(total, annotated)
    order = np.argsort(np.abs(t - nearest), kind="stable")
    return [(int(k), int(k - np.sign(k - nearest[k]))) for k in order if k != nearest[k]]


def mask_source(has_mask: np.ndarray, annotated: Sequence[int]) -> np.ndarray:
    """Return for each slice the slice whose mask it has, or would have if tracking had not ended, int (T,).

    That is the slice itself where it has a mask, else the last one with a mask on the way from the nearest annotated slice.

    Args:
        has_mask: Bool (T,).
    """
    source = np.arange(len(has_mask))
    for k, inner in neighbours_outward(len(has_mask), annotated):
        if not has_mask[k]:
            source[k] = source[inner]
    return source


def compute_signals(
    masks: np.ndarray, *, pixel_mm: float, slice_mm: float, annotated: Sequence[int], predicted_iou: np.ndarray, presence: np.ndarray,
    agreement: np.ndarray, likeness: np.ndarray, correlation: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return the signals of each slice: float (T, len(SIGNALS)).

    Distances are divided by the structure's size (the square root of its mean annotated area), so that a lesion and a liver compare.

    Args:
        masks: Bool (T, h, w) at any resolution.
        pixel_mm: Side of a pixel of `masks`.
        slice_mm: Distance of neighbouring slices.
        annotated: Indices of the prompted slices.
        predicted_iou: The decoder's estimate (T,).
        presence: Probability (T,) that the object is on the slice.
        agreement: Dice (T,) of the two passes between annotated slices, else NaN.
        likeness: How much more the inside of the slice's mask (see `mask_source`) looks like the annotated structure than its
            surroundings do, (T,) in [-1, 1].
        correlation: Correlation of the image with that of the slice where the mask comes from, (T,) in [-1, 1].
    """
    total = len(masks)
    t, annotated = np.arange(total), np.asarray(sorted(annotated))
    area_mm2 = masks.sum((1, 2)) * pixel_mm**2
    annotated_areas = area_mm2[annotated][area_mm2[annotated] > 0]
    size_mm = float(np.sqrt(annotated_areas.mean())) if len(annotated_areas) else 10.0
    nearest = nearest_annotated(total, annotated)
    distance = np.abs(t - nearest) * slice_mm / size_mm
    source = mask_source(area_mm2 > 0, annotated)
    overlap, change = np.ones(total), np.zeros(total)
    worst_iou, worst_likeness = np.clip(predicted_iou, 0, 1).astype(float), likeness.astype(float)
    least_correlation = correlation.astype(float)
    for k, inner in neighbours_outward(total, annotated):  # The signals below collect what happened on the way to a slice.
        pixels = masks[k].sum() + masks[inner].sum()
        overlap[k] = 2 * (masks[k] & masks[inner]).sum() / pixels if pixels else 1.0
        change[k] = change[inner] + 1 - overlap[k]
        worst_iou[k], worst_likeness[k] = min(worst_iou[k], worst_iou[inner]), min(worst_likeness[k], worst_likeness[inner])
        if area_mm2[k] == 0:
            least_correlation[k] = min(least_correlation[k], least_correlation[inner])
    mask_nearness = np.exp(-2 * np.abs(t - source) * slice_mm / size_mm)  # 1 where there is a mask.
    end_area = np.minimum(area_mm2[source] / max(float(area_mm2[annotated].max()), 1e-6), 4)  # How large the mask was where it ended.
    reach = np.minimum(np.abs(source - nearest) * slice_mm / size_mm, 3)
    area_ratio = np.abs(np.log((area_mm2 + 1) / (area_mm2[nearest] + 1)))
    presence_logit = np.clip(np.log(np.clip(presence, 1e-6, 1) / np.clip(1 - presence, 1e-6, 1)), -6, 6)
    has_two_passes = ~np.isnan(agreement)
    return np.stack([
        np.clip(predicted_iou, 0, 1), presence_logit / 6, np.minimum(distance, 4), np.exp(-2 * distance), np.minimum(change, 4),
        np.minimum(area_ratio, 4), overlap, worst_iou, np.where(has_two_passes, np.nan_to_num(agreement), 0.7), has_two_passes,
        likeness, worst_likeness, least_correlation, mask_nearness, end_area, end_area * mask_nearness,
        np.maximum(least_correlation, 0) * mask_nearness, np.maximum(worst_likeness, 0) * mask_nearness,
        reach, np.exp(-reach) * mask_nearness,
    ], 1).astype(float)  # fmt: skip
