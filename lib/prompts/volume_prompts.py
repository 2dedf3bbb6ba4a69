"""Check the prompts for one structure (clicks, boxes, painted slices, empty slices) against a volume, and sort them by slice."""

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
    """The prompts for one structure in voxel indices (i, j, k) of a volume; `make_prompts` creates and checks them.

    Attributes:
        positive, negative: Clicks inside and outside the structure, in the order in which they were made.
        boxes: 2D boxes as inclusive corners (low, high). A box that is thick along the slicing axis applies to its middle slice.
        roi: 3D region (low, high) that contains the structure, or None. If nothing else shows the structure, it also serves as a
            box on its middle slice.
        masks: Painted slices by index along the slicing axis: bool (I, J, K) without that axis, which is (X, Y) of a frame.
        absent: Indices along the slicing axis of slices that are marked as empty.
    """

    positive: tuple[Voxel, ...] = ()
    negative: tuple[Voxel, ...] = ()
    boxes: tuple[tuple[Voxel, Voxel], ...] = ()
    roi: tuple[Voxel, Voxel] | None = None
    masks: dict[int, np.ndarray] = field(default_factory=dict)
    absent: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SlicePrompt:
    """The prompts on one slice, in pixels of its frame (see `lib.imaging.frames.Frames`).

    Attributes:
        points: float (P, 2), pixel coordinates (x, y) as SAM 2 expects them; the corners of a box come first.
        labels: int (P,), 1 for a positive click, 0 for a negative one, 2 and 3 for the low and high corner of a box.
        mask: bool (Y, X), the painted mask, or None. An empty mask means that the structure is absent from this slice.
    """

    points: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None = None

    @cached_property
    def key(self) -> str:
        """Hexadecimal digest of the content, for caches."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.points, self.labels, *(() if self.mask is None else (np.packbits(self.mask),))):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def cropped(self, rows: slice, columns: slice) -> "SlicePrompt":
        """Return the same prompts in the coordinates of a crop of the frame."""
        points = self.points - np.array([columns.start, rows.start])
        return SlicePrompt(points, self.labels, None if self.mask is None else self.mask[rows, columns])

    @property
    def first_click(self) -> "SlicePrompt":
        """The first of several clicks as a prompt of its own; prompts with a box or a painted mask stay as they are."""
        has_only_clicks = self.mask is None and (self.labels < 2).all()
        return SlicePrompt(self.points[:1], self.labels[:1]) if has_only_clicks and len(self.labels) > 1 else self

    def without_last_click(self) -> "SlicePrompt":
        """Return the prompts as they were before the last click."""
        return SlicePrompt(self.points[:-1], self.labels[:-1], self.mask)

    @property
    def defines_structure(self) -> bool:
        """Whether the prompts show the structure, that is, whether they are more than negative clicks."""
        return self.mask is not None or bool((self.labels > 0).any())


def make_prompts(volume: Volume, *, positive=(), negative=(), boxes=(), roi=None, masks=None, absent=(), axis: int = 2) -> Prompts:
    """Check prompts against a volume and return them in a uniform form.

    Args:
        positive, negative: Clicks (i, j, k) inside and outside the structure; each is rounded to the nearest voxel.
        boxes: Pairs of opposite corners (i, j, k) in any order; they are clipped to the volume.
        roi: One such pair that contains the structure, or None.
        masks: Painted slices by index along `axis`: bool arrays in the order of the volume's other two axes.
        absent: Indices along `axis` of slices without the structure.
        axis: The slicing axis, 0, 1 or 2.

    Raises:
        PromptError: A prompt is malformed, empty or outside the volume, prompts contradict each other, or none shows the structure.
    """
    masks = dict(masks or {})
    shape = volume.shape
    plane = tuple(n for a, n in enumerate(shape) if a != axis)
    for t, mask in masks.items():
        if mask.shape != plane:
            raise PromptError(f"The painted slice {t} has shape {mask.shape}; {plane} is needed.")
    for t in (*masks, *absent):
        if not 0 <= t < shape[axis]:
            raise PromptError(f"There is no slice {t}; slices go from 0 to {shape[axis] - 1}.")
    positive = tuple(dict.fromkeys(_checked_voxel(p, shape) for p in positive))
    negative = tuple(dict.fromkeys(_checked_voxel(p, shape) for p in negative))
    contradictory = set(positive) & set(negative)
    if contradictory:
        raise PromptError(f"Voxel {min(contradictory)} is clicked both as inside and as outside; delete one of the two.")
    roi = None if roi is None else _checked_box(roi, shape)
    prompts = Prompts(positive, negative, tuple(_checked_box(b, shape) for b in boxes), roi, masks, tuple(sorted(set(absent))))
    if not (positive or prompts.boxes or roi or any(m.any() for m in masks.values())):
        raise PromptError("Nothing says where the structure is: click inside it, draw a box or paint a slice.")
    return prompts


def group_by_slice(prompts: Prompts, frames: Frames) -> dict[int, SlicePrompt]:
    """Return the prompts of each annotated slice by its index.

    Painted and empty slices come first, then slices with a box, then slices with a positive click, then those with negative ones.

    Raises:
        PromptError: A slice has two boxes, or it is marked as empty and has a box or a positive click.
    """
    masks = {t: mask.T for t, mask in prompts.masks.items()}
    masks |= {t: np.zeros(frames.size, bool) for t in prompts.absent if t not in masks}
    boxes: dict[int, tuple] = {}
    for low, high in prompts.boxes:
        t = (low[frames.axis] + high[frames.axis]) // 2
        if t in boxes or t in prompts.absent:
            raise PromptError(f"Slice {t} has {'two boxes' if t in boxes else 'a box but is said to be empty'}; keep one.")
        boxes[t] = (low, high)
    shows_structure = prompts.positive or boxes or any(m.any() for m in masks.values())
    if prompts.roi is not None and not shows_structure:
        # With other prompts, the region only limits the range of slices.
        low, high = prompts.roi
        boxes[(low[frames.axis] + high[frames.axis]) // 2] = (low, high)
    points: dict[int, list] = {}
    for label, voxels in ((1, prompts.positive), (0, prompts.negative)):
        for voxel in voxels:
            t, y, x = frames.to_pixel(voxel)
            if label and t in prompts.absent:
                raise PromptError(f"Slice {t} is said to be empty, but has a click inside; keep one of the two.")
            points.setdefault(t, []).append((x, y, label))
    prompts_by_slice = {}
    for t in dict.fromkeys((*masks, *boxes, *points)):
        rows = []
        if t in boxes:
            # Voxel indices are pixel centres; the box reaches to the outer edges of its corner pixels.
            for corner, label, to_edge in zip(boxes[t], (2, 3), (-0.5, 0.5), strict=True):
                _, y, x = frames.to_pixel(corner)
                rows.append((x + to_edge, y + to_edge, label))
        rows += points.get(t, [])
        table = np.array(rows, float).reshape(-1, 3)
        # A painted slice is exact, so clicks on it change single pixels of the painting instead of prompting the model.
        mask = masks.get(t)
        if mask is not None:
            mask = mask.copy()
            for x, y, label in points.get(t, []):
                mask[int(y), int(x)] = bool(label)
            table = table[:0]
        prompts_by_slice[t] = SlicePrompt(table[:, :2], table[:, 2].astype(np.int32), mask)
    return prompts_by_slice


def _checked_voxel(point, shape) -> Voxel:
    """Return the voxel nearest to a click, or raise PromptError."""
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


def _checked_box(corners, shape) -> tuple[Voxel, Voxel]:
    """Return the low and high corner voxels of a box, clipped to the volume, or raise PromptError."""
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
