"""What a user says about one structure: clicks, boxes, painted slices, "not here". Checked once, here."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lib.common.errors import PromptError
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Prompts:
    """Prompts in voxel indices (i, j, k) of one volume, already checked (make them with `make_prompts`).

    Attributes:
        positive, negative: clicks in the order in which they were made.
        boxes: 2D boxes, as (low, high) voxel corners, both inside the box; flat along the slicing axis.
        roi: 3D region (low, high), both inside: the structure lies within; also a box on its middle slice.
        masks: painted slices along `mask_axis`: {slice index: bool (I, J, K) with that axis removed}.
        absent: slice indices (along the slicing axis) where the structure is not.
    """

    positive: tuple[Voxel, ...] = ()
    negative: tuple[Voxel, ...] = ()
    boxes: tuple[tuple[Voxel, Voxel], ...] = ()
    roi: tuple[Voxel, Voxel] | None = None
    masks: dict[int, np.ndarray] = field(default_factory=dict)
    absent: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SlicePrompt:
    """What is said about one frame, in its pixels (y, x).

    Attributes:
        points: (P, 2) float, x then y. labels: (P,) 1 positive, 0 negative; 2 and 3 the corners of a box, which come
            first.
        mask: bool (Y, X), or None. An empty one means "not here".
    """

    points: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None = None

    @cached_property
    def key(self) -> str:
        """Digest of the content."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.points, self.labels, *(() if self.mask is None else (np.packbits(self.mask),))):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def cropped(self, rows: slice, columns: slice) -> "SlicePrompt":
        """The same in a part of the frame."""
        points = self.points - np.array([columns.start, rows.start])
        return SlicePrompt(points, self.labels, None if self.mask is None else self.mask[rows, columns])

    @property
    def first_click(self) -> "SlicePrompt":
        """The first click alone, if there is neither a box nor a painting."""
        only_clicks = self.mask is None and (self.labels < 2).all()
        return SlicePrompt(self.points[:1], self.labels[:1]) if only_clicks and len(self.labels) > 1 else self

    def without_last_click(self) -> "SlicePrompt":
        """What was said before the last click."""
        return SlicePrompt(self.points[:-1], self.labels[:-1], self.mask)

    @property
    def defines_structure(self) -> bool:
        """Whether it says what the structure is, and not only what is wrong with a mask: anything but clicks outside."""
        return self.mask is not None or bool((self.labels > 0).any())


def make_prompts(
    volume: Volume, *, positive=(), negative=(), boxes=(), roi=None, masks=None, absent=(), axis: int = 2
) -> Prompts:
    """Checks prompts against a volume.

    Args:
        positive, negative: voxel indices, whole numbers or close to it.
        boxes: pairs of opposite corners, in any order, clipped to the volume.
        roi: one such pair, or None.
        masks: {slice index: bool array}, slices along `axis`.
        absent: slice indices along `axis`.

    Raises:
        PromptError: not numbers, a click outside, an empty box, a slice that does not exist.
    """
    masks = dict(masks or {})
    shape = volume.shape
    plane = tuple(n for a, n in enumerate(shape) if a != axis)
    for t, m in masks.items():
        if m.shape != plane:
            raise PromptError(f"The painted slice {t} has shape {m.shape}; {plane} is needed.")
    for t in (*masks, *absent):
        if not 0 <= t < shape[axis]:
            raise PromptError(f"There is no slice {t}; slices go from 0 to {shape[axis] - 1}.")
    pos = tuple(dict.fromkeys(_voxel(p, shape) for p in positive))
    neg = tuple(dict.fromkeys(_voxel(p, shape) for p in negative))
    both = set(pos) & set(neg)
    if both:
        raise PromptError(f"Voxel {min(both)} is clicked both as inside and as outside; delete one of the two.")
    region = None if roi is None else _box(roi, shape)
    prompts = Prompts(pos, neg, tuple(_box(b, shape) for b in boxes), region, masks, tuple(sorted(set(absent))))
    if not (pos or prompts.boxes or region or any(m.any() for m in masks.values())):
        raise PromptError("Nothing says where the structure is: click inside it, draw a box or paint a slice.")
    return prompts


def group_by_slice(prompts: Prompts, frames: Frames) -> dict[int, SlicePrompt]:
    """Prompts of each annotated frame, keys in the order in which they were made, standing-alone ones first.

    Raises:
        PromptError: a slice with two boxes, or with a box or a click inside although it is said to be empty.
    """
    masks = {t: frames.from_volume(np.expand_dims(m, frames.axis))[0] for t, m in prompts.masks.items()}
    masks |= {t: np.zeros(frames.size, bool) for t in prompts.absent if t not in masks}
    boxes: dict[int, tuple] = {}
    for low, high in prompts.boxes:
        t = (low[frames.axis] + high[frames.axis]) // 2
        if t in boxes or t in prompts.absent:
            raise PromptError(f"Slice {t} has {'two boxes' if t in boxes else 'a box but is said to be empty'}; keep one.")
        boxes[t] = (low, high)
    if prompts.roi is not None:
        _roi_box(prompts, frames, boxes, masks)
    points: dict[int, list] = {}
    for label, voxels in ((1, prompts.positive), (0, prompts.negative)):
        for voxel in voxels:
            t, y, x = frames.to_pixel(voxel)
            if label and t in prompts.absent:
                raise PromptError(f"Slice {t} is said to be empty, but has a click inside; keep one of the two.")
            points.setdefault(t, []).append((x, y, label))
    out = {}
    for t in dict.fromkeys((*masks, *boxes, *points)):
        rows = []
        if t in boxes:
            for corner, label, edge in zip(boxes[t], (2, 3), (-0.5, 0.5), strict=True):
                _, y, x = frames.to_pixel(corner)
                rows.append((x + edge, y + edge, label))
        rows += points.get(t, [])
        table = np.array(rows, float).reshape(-1, 3)
        # A painted slice is exact: clicks on it are taken as part of the painting, not as further prompts.
        mask = masks.get(t)
        if mask is not None:
            mask = mask.copy()
            for x, y, label in points.get(t, []):
                mask[int(y), int(x)] = bool(label)
            table = table[:0]
        out[t] = SlicePrompt(table[:, :2], table[:, 2].astype(np.int32), mask)
    return out


def _roi_box(prompts, frames, boxes, masks) -> None:
    """A 3D region without any click is a box on its middle slice; with clicks it only limits the range of slices."""
    if prompts.positive or boxes or any(m.any() for m in masks.values()):
        return
    low, high = prompts.roi
    boxes[(low[frames.axis] + high[frames.axis]) // 2] = (low, high)


def _voxel(point, shape) -> Voxel:
    try:
        ijk = np.asarray(point, float)
    except (TypeError, ValueError, OverflowError) as e:
        raise PromptError(f"A click must be three numbers i,j,k; got {point!r}.") from e
    if ijk.shape != (3,) or not np.isfinite(ijk).all():
        raise PromptError(f"A click must be three numbers i,j,k; got {point!r}.")
    index = tuple(int(v) for v in np.rint(ijk))
    if not all(0 <= v < n for v, n in zip(index, shape, strict=True)):
        raise PromptError(f"The click {index} lies outside the volume of {shape[0]} x {shape[1]} x {shape[2]} voxels.")
    return index


def _box(corners, shape) -> tuple[Voxel, Voxel]:
    try:
        pair = np.asarray(corners, float)
    except (TypeError, ValueError, OverflowError) as e:
        raise PromptError(f"A box needs two corners of three numbers; got {corners!r}.") from e
    if pair.shape != (2, 3) or not np.isfinite(pair).all():
        raise PromptError(f"A box needs two corners of three numbers; got {corners!r}.")
    low, high = np.rint(pair.min(0)), np.rint(pair.max(0))
    top = np.array(shape) - 1
    if (high < 0).any() or (low > top).any():
        raise PromptError(f"The box {low.tolist()} to {high.tolist()} lies outside the volume.")
    low, high = np.maximum(low, 0).astype(int), np.minimum(high, top).astype(int)
    if (high - low > 0).sum() < 2:
        raise PromptError(f"The box {low.tolist()} to {high.tolist()} is empty: it needs an extent along two axes.")
    return tuple(int(v) for v in low), tuple(int(v) for v in high)
