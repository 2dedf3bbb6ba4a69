"""Every slice is encoded once: what the decoder and the memory need of a slice, kept in a store bounded in bytes."""

import hashlib
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from lib.imaging.frames import Frames, fitted_size
from lib.model import worker_pool
from lib.model.build import normalize
from lib.model.device import release_memory
from lib.model.feature_overflow import FeatureOverflow
from lib.propagation import appearance

logger = logging.getLogger(__name__)

STORE_BYTES = 4 << 30
GIVE_BACK = 256 << 20  # bytes of features after which memory goes back to the system: 1000 slices of 1024 pixels leave 2 to 4 GB
OUTSIDE = -10.0  # logit of what lies beyond the slice


def encoder_key(model) -> str:
    """Digest of everything that features depend on: encoder weights, the decoder's convolutions on them, image size."""
    decoder = model.sam_mask_decoder
    parts = [model.image_encoder, *(getattr(decoder, n) for n in ("conv_s0", "conv_s1") if hasattr(decoder, n))]
    digest = hashlib.blake2b(str(model.image_size).encode(), digest_size=16)
    for part in parts:
        for name, tensor in part.state_dict().items():
            values = tensor.detach().float().cpu() + 0.0  # -0 is 0: averaging weights that do not learn loses that sign
            digest.update(name.encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()


class SliceFeatures:
    """Encoder output of the slices of one volume, computed on demand in batches.

    A slice is resized so that its longer physical side fills the model's square (true aspect), the rest is padded.
    The square's pixel (y, x) is the slice's pixel ((y + 0.5) / scale_y - 0.5, ...).

    Where the features of a volume exceed `limit` bytes, the slices that were used longest ago go to `spill`, or are encoded again
    when they are needed.

    Attributes:
        frames: the slices. side: the square's side in pixels.
        height, width: of the slice within the square.
        batch: slices encoded at once.
        half: whether what comes in full precision is kept in half.
    """

    def __init__(self, model, frames: Frames, device: torch.device, autocast, batch: int, limit: int = STORE_BYTES,
                 spill: FeatureOverflow | None = None, key: tuple = (), half: bool = False):  # fmt: skip
        self._spill, self._key, self.half = spill, key, half
        self.model, self.frames, self.device, self.autocast, self.batch = model, frames, device, autocast, batch
        self.limit = limit
        self.side = model.image_size
        self.height, self.width = fitted_size(frames.size, frames.pixel_mm, self.side)
        self._slices: OrderedDict[int, tuple[torch.Tensor, ...]] = OrderedDict()
        self._changed = threading.Condition()
        self._busy: set[int] = set()  # slices that are being encoded
        self._made = 0  # bytes of features since memory was given back
        self.position: torch.Tensor | None = None  # codes of the coarsest level, the only ones that are used
        self._thumbnails: torch.Tensor | None = None

    @property
    def thumbnails(self) -> torch.Tensor:
        """Of all slices: uint8 (T, appearance.SIDE, appearance.SIDE), on the device."""
        with self._changed:  # runs side by side begin with this, and it takes a while
            if self._thumbnails is None:
                self._thumbnails = torch.from_numpy(self.frames.thumbnails(appearance.SIDE)).to(self.device)
            return self._thumbnails

    @cached_property
    def thumbnail_valid(self) -> torch.Tensor:
        """Where a thumbnail is no padding: bool (appearance.SIDE, appearance.SIDE)."""
        valid = torch.zeros(appearance.SIDE, appearance.SIDE, dtype=torch.bool, device=self.device)
        height, width = fitted_size(self.frames.size, self.frames.pixel_mm, appearance.SIDE)
        valid[:height, :width] = True
        return valid

    @property
    def bytes(self) -> int:
        with self._changed:
            return self._each() * len(self._slices)

    def _each(self) -> int:
        return sum(t.nbytes for t in next(iter(self._slices.values()))) if self._slices else 0

    def missing(self, indices) -> list[int]:
        """Those of the slice indices that are not encoded yet."""
        return [t for t in dict.fromkeys(indices) if t not in self._slices]

    def untouched(self, indices) -> list[int]:
        """Those that are neither encoded nor being encoded."""
        with self._changed:
            return [t for t in self.missing(indices) if t not in self._busy]

    def ensure(self, indices) -> int:
        """Encodes those slices that are missing; returns how many. What another thread is at is waited for."""
        indices = self.missing(indices)
        return sum(self._obtain(indices[n : n + self.batch])[1] for n in range(0, len(indices), self.batch))

    def _obtain(self, indices) -> tuple[dict[int, tuple[torch.Tensor, ...]], int]:
        """Features of slices, whatever is forgotten meanwhile, and how many had to be encoded."""
        indices = list(dict.fromkeys(indices))
        with self._changed:
            self._changed.wait_for(lambda: self._busy.isdisjoint(indices))
            found = self._known(indices)
            todo = [t for t in indices if t not in found]
            self._busy.update(todo)
        try:
            size = worker_pool.piece(len(todo), self.batch, self.device)
            for part in worker_pool.share(self._encode, [todo[n : n + size] for n in range(0, len(todo), size)], self.device):
                found |= part
        finally:
            with self._changed:
                self._busy.difference_update(todo)
                self._changed.notify_all()
        return found, len(todo)

    def _known(self, indices: list[int]) -> dict[int, tuple[torch.Tensor, ...]]:
        """Slices that are kept, and those that were spilled, which are taken back."""
        found = {t: self._slices[t] for t in indices if t in self._slices}
        for t in found:
            self._slices.move_to_end(t)
        if self._spill is None or self.position is None:
            return found
        for t in indices:
            kept = None if t in found else self._spill.get((*self._key, t))
            if kept is not None:
                self._slices[t] = found[t] = tuple(x.to(self.device, non_blocking=True) for x in kept)
                self._forget(1)
        return found

    def _forget(self, keep: int) -> None:
        """Slices that were used longest ago, until the rest fits; `keep` of them stay in any case."""
        while len(self._slices) > keep and self._each() * len(self._slices) > self.limit:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        t, tensors = self._slices.popitem(last=False)
        if self._spill is not None:
            self._spill.put((*self._key, t), tensors)

    def spill_all(self) -> None:
        """Keeps nothing on the device."""
        with self._changed:
            while self._slices:
                self._drop_oldest()

    def squares(self, indices) -> torch.Tensor:
        """Model input before normalisation: float32 (N, side, side) in [0, 255], on the device."""
        frames = torch.from_numpy(self.frames.windowed(indices)).to(self.device)[:, None].float()
        if frames.shape[-2:] != (self.height, self.width):
            size = (self.height, self.width)
            frames = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
        frames = F.pad(frames, (0, self.side - self.width, 0, self.side - self.height))
        return frames[:, 0].clamp(0, 255)

    def _encode(self, indices: list[int]) -> dict[int, tuple[torch.Tensor, ...]]:
        with torch.inference_mode(), self.autocast():
            out = self.model.forward_image(normalize(self.squares(indices)))
            if self.position is None:  # an inference tensor, whoever encodes: what is compiled depends on it
                self.position = out["vision_pos_enc"][-1][:1].clone()
        levels = out["backbone_fpn"][-self.model.num_feature_levels :]
        kind = torch.float16 if self.half and levels[0].dtype == torch.float32 else levels[0].dtype
        made = {t: tuple(level[n].to(kind, copy=True) for level in levels) for n, t in enumerate(indices)}
        with self._changed:
            self._slices.update(made)
            self._forget(len(made))
            self._made += len(made) * self._each()
            much = self._made >= GIVE_BACK and self.device.type == "cpu"
            if much:
                self._made = 0
        if much:  # takes some milliseconds, for which nobody shall wait
            release_memory()
        return made

    def gather(self, indices) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[int, int]]]:
        """Features of slices as SAM 2's `track_step` takes them: per level (HW, B, C), position codes of the last, sizes."""
        known, _ = self._obtain(indices)
        kept = [known[t] for t in indices]
        levels = [torch.stack([k[n] for k in kept]) for n in range(len(kept[0]))]
        levels = [x.float() if x.dtype == torch.float16 else x for x in levels]
        sizes = [tuple(x.shape[-2:]) for x in levels]
        b = len(indices)
        position = self.position.expand(b, -1, -1, -1).flatten(2).permute(2, 0, 1)
        return [x.flatten(2).permute(2, 0, 1) for x in levels], [position], sizes

    # coordinates ----------------------------------------------------------------------------------------------------
    def to_square(self, points_xy: np.ndarray) -> np.ndarray:
        """Pixel positions (P, 2) as (x, y) of a slice, in the square (centres of pixels are whole numbers in both)."""
        scale = np.array([self.width / self.frames.size[1], self.height / self.frames.size[0]])
        return (np.asarray(points_xy, float) + 0.5) * scale - 0.5

    def mask_to_square(self, mask: np.ndarray) -> torch.Tensor:
        """A painted slice bool (Y, X) as float32 {0, 1} (1, 1, side, side); thin structures do not vanish."""
        m = torch.from_numpy(np.ascontiguousarray(mask)).to(self.device)[None, None].float()
        m = F.interpolate(m, (self.height, self.width), mode="bilinear", antialias=True, align_corners=False)
        binary = (m >= 0.5).float()
        if mask.any() and not binary.any():
            binary = (m >= m.max()).float()
        return F.pad(binary, (0, self.side - self.width, 0, self.side - self.height))

    def from_slices(self, logits: torch.Tensor, side: int) -> torch.Tensor:
        """Logits (N, Y, X) of slices as (N, 1, side, side) of the square, the inverse of `to_slices`."""
        height, width = (max(1, round(n * side / self.side)) for n in (self.height, self.width))
        x = F.interpolate(logits[:, None].float(), (height, width), mode="bilinear", antialias=True, align_corners=False)
        return F.pad(x, (0, side - width, 0, side - height), value=OUTSIDE)

    def to_slices(self, low_res: torch.Tensor) -> torch.Tensor:
        """Logits (N, h, w) of the square at any resolution as logits (N, Y, X) of the slices."""
        x = low_res[:, None].float()
        if x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        x = x[..., : self.height, : self.width]
        if x.shape[-2:] != tuple(self.frames.size):
            x = F.interpolate(x, self.frames.size, mode="bilinear", align_corners=False)
        return x[:, 0]

    def masks(self, low_res: torch.Tensor) -> tuple[np.ndarray, slice, slice]:
        """Where `to_slices` is positive: bool (N, y, x) within these rows and columns of the slices, and nowhere else.

        Args:
            low_res: (N, h, w), positive somewhere.
        """
        down, across = self._weights(low_res.shape[-1], low_res.device)
        there = low_res.amax(0) > 0
        rows, columns = _reached(down, there.any(1)), _reached(across, there.any(0))
        return (down[rows] @ low_res.float() @ across[columns].T > 0).cpu().numpy(), rows, columns

    def _weights(self, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """What `to_slices` does to columns and to rows of a square with this side, as matrices (Y, side) and (X, side)."""
        one = torch.eye(side, device=device)[None, None]
        whole = F.interpolate(one, (self.side, side), mode="bilinear", align_corners=False) if side != self.side else one
        sizes = zip((self.height, self.width), self.frames.size, strict=True)
        return tuple(F.interpolate(whole[:, :, :n], (size, side), mode="bilinear", align_corners=False)[0, 0] for n, size in sizes)


def _reached(weights: torch.Tensor, sources: torch.Tensor) -> slice:
    """The rows of a matrix (N, M) of weights to which `sources`, bool (M,), contribute; none for those that are padding only."""
    found = torch.nonzero(weights[:, sources].any(1))[:, 0].tolist()
    return slice(found[0], found[-1] + 1) if found else slice(0, 0)


@dataclass
class FeatureCache:
    """Least recently used volumes go first when `limit` bytes are exceeded, to `spill` if there is one; the newest always stays."""

    limit: int = STORE_BYTES
    spill: FeatureOverflow | None = None

    def __post_init__(self):
        self._entries: OrderedDict[tuple, SliceFeatures] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple, make) -> SliceFeatures:
        """The entry of `key`, made by `make()` if it is new."""
        with self._lock:
            if key not in self._entries:
                self._entries[key] = make()
            self._entries.move_to_end(key)
            return self._entries[key]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()

    def trim(self) -> None:
        """Forgets old volumes until the rest fits."""
        with self._lock:
            while len(self._entries) > 1 and sum(e.bytes for e in self._entries.values()) > self.limit:
                key, entry = self._entries.popitem(last=False)
                entry.spill_all()
                logger.info("Put the features of %s aside.", key[0])

    @property
    def bytes(self) -> int:
        return sum(e.bytes for e in list(self._entries.values()))
