"""Encoder output of the slices of one volume: encode each slice once, and keep what the decoder and the memory need of it."""

import hashlib
import threading
from collections import OrderedDict
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from lib.imaging.frames import Frames, fitted_size
from lib.model.build import normalize
from lib.model.device import release_memory
from lib.model.feature_overflow import FeatureOverflow
from lib.model.worker_pool import CPU_CORES, run_all, threads_per_task

DEFAULT_LIMIT_BYTES = 4 << 30
RELEASE_EVERY_BYTES = 256 << 20  # Otherwise encoding 1000 slices of 1024 pixels leaves 2 to 4 GB of freed memory with the process.
PADDING_LOGIT = -10.0  # Of pixels of the network's square that lie beyond the slice.
THUMBNAIL_SIDE = 64  # Pixels.

LevelMaps = tuple[torch.Tensor, ...]  # Feature maps of one slice, from fine to coarse.


def encoder_digest(model) -> str:
    """Return a digest of everything that features depend on: encoder weights, the decoder's convolutions on its maps, image size."""
    decoder = model.sam_mask_decoder
    modules = [model.image_encoder, *(getattr(decoder, n) for n in ("conv_s0", "conv_s1") if hasattr(decoder, n))]
    digest = hashlib.blake2b(str(model.image_size).encode(), digest_size=16)
    for module in modules:
        for name, tensor in module.state_dict().items():
            values = tensor.detach().float().cpu() + 0.0  # This turns -0 into 0, because averaging weights in training loses that sign.
            digest.update(name.encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()


class SliceFeatures:
    """Encoder output of the slices of one volume, computed when it is first needed.

    A slice is resized so that its physically longer side fills the network's square; it keeps its proportions, and the rest is padding.
    Where the features exceed `limit_bytes`, the slices that were used longest ago go to `overflow`; without it they are encoded again
    when they are needed. Any number of threads may use one object.

    Args:
        model: `SAM2Base` in evaluation mode on `device`.
        autocast: Function without arguments that makes a context manager for each forward pass.
        batch: Number of slices that are encoded as one batch; on a CPU it should be 1.
        key: What identifies this object's slices in `overflow`.
        keep_half: Whether features that come in full precision are kept in half precision.

    Attributes:
        side: Side of the network's square in pixels.
        height, width: Size of the slice within the square in pixels.
        threads_each: Number of threads that compute one task of this network on a CPU.
    """

    def __init__(self, model, frames: Frames, device: torch.device, autocast, batch: int, limit_bytes: int = DEFAULT_LIMIT_BYTES,
                 overflow: FeatureOverflow | None = None, key: tuple = (), keep_half: bool = False):  # fmt: skip
        self.model, self.frames, self.device, self.autocast, self.batch = model, frames, device, autocast, batch
        self.limit_bytes, self.keep_half = limit_bytes, keep_half
        self.side, self.threads_each = model.image_size, threads_per_task(model.image_size)
        self.height, self.width = fitted_size(frames.size, frames.pixel_mm, self.side)
        self._overflow, self._key = overflow, key
        self._slices: OrderedDict[int, LevelMaps] = OrderedDict()
        self._changed = threading.Condition()
        self._in_progress: set[int] = set()
        self._bytes_since_release = 0
        self._position_codes: torch.Tensor | None = None  # Of the coarsest level, the only ones that are used.
        self._thumbnails: torch.Tensor | None = None

    @property
    def thumbnails(self) -> torch.Tensor:
        """All slices in small: uint8 (T, THUMBNAIL_SIDE, THUMBNAIL_SIDE) on the device, see `Frames.thumbnails`."""
        with self._changed:  # Several passes ask for them at once, and making them takes a while.
            if self._thumbnails is None:
                self._thumbnails = torch.from_numpy(self.frames.thumbnails(THUMBNAIL_SIDE)).to(self.device)
            return self._thumbnails

    @cached_property
    def thumbnail_valid(self) -> torch.Tensor:
        """Bool (THUMBNAIL_SIDE, THUMBNAIL_SIDE): False where a thumbnail is padding."""
        valid = torch.zeros(THUMBNAIL_SIDE, THUMBNAIL_SIDE, dtype=torch.bool, device=self.device)
        height, width = fitted_size(self.frames.size, self.frames.pixel_mm, THUMBNAIL_SIDE)
        valid[:height, :width] = True
        return valid

    @property
    def slices_per_round(self) -> int:
        """Number of slices after which encoding in the background may be interrupted."""
        return max(1, CPU_CORES // self.threads_each) if self.device.type == "cpu" else self.batch

    @property
    def bytes(self) -> int:
        """Bytes of all features that are held here."""
        with self._changed:
            return self._bytes_per_slice() * len(self._slices)

    def _bytes_per_slice(self) -> int:
        return sum(t.nbytes for t in next(iter(self._slices.values()))) if self._slices else 0

    def missing(self, indices) -> list[int]:
        """Return those of the slice indices whose features are not held here, each once."""
        return [t for t in dict.fromkeys(indices) if t not in self._slices]

    def ensure(self, indices) -> int:
        """Encode the missing ones of these slices and return how many were encoded; wait for those that another thread is encoding."""
        indices, at_once = self.missing(indices), max(self.batch, self.slices_per_round)
        return sum(self._obtain(indices[n : n + at_once])[1] for n in range(0, len(indices), at_once))

    def _obtain(self, indices) -> tuple[dict[int, LevelMaps], int]:
        """Return the features of slices, even if some are forgotten meanwhile, and how many had to be encoded."""
        indices = list(dict.fromkeys(indices))
        with self._changed:
            features = self._kept(indices)
        missing, count = [t for t in indices if t not in features], 0
        batches = [missing[n : n + self.batch] for n in range(0, len(missing), self.batch)]
        for obtained, encoded in run_all(self._encode_missing, batches, self.device, self.threads_each):
            features |= obtained
            count += encoded
        return features, count

    def _encode_missing(self, indices: list[int]) -> tuple[dict[int, LevelMaps], int]:
        """Do the same as `_obtain`, as one task.

        Only a running task marks slices as being encoded. If its caller did so, all workers could wait for slices whose task has no worker.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._in_progress.isdisjoint(indices))
            features = self._kept(indices)
            missing = [t for t in indices if t not in features]
            self._in_progress.update(missing)
        try:
            return features | (self._encode(missing) if missing else {}), len(missing)
        finally:
            with self._changed:
                self._in_progress.difference_update(missing)
                self._changed.notify_all()

    def _kept(self, indices: list[int]) -> dict[int, LevelMaps]:
        """Return the features that are held here, and those that the overflow gives back."""
        features = {t: self._slices[t] for t in indices if t in self._slices}
        for t in features:
            self._slices.move_to_end(t)
        if self._overflow is None or self._position_codes is None:
            return features
        for t in indices:
            stored = None if t in features else self._overflow.get((*self._key, t))
            if stored is not None:
                self._slices[t] = features[t] = tuple(x.to(self.device, non_blocking=True) for x in stored)
                self._make_room(keep=1)
        return features

    def _make_room(self, keep: int) -> None:
        """Put aside the slices that were used longest ago until the rest fits; at least `keep` of them stay."""
        while len(self._slices) > keep and self._bytes_per_slice() * len(self._slices) > self.limit_bytes:
            self._put_oldest_aside()

    def _put_oldest_aside(self) -> None:
        t, maps = self._slices.popitem(last=False)
        if self._overflow is not None:
            self._overflow.put((*self._key, t), maps)

    def put_all_aside(self) -> None:
        """Hand all slices to the overflow, or forget them."""
        with self._changed:
            while self._slices:
                self._put_oldest_aside()

    def squares(self, indices) -> torch.Tensor:
        """Return the network's input before normalisation: float32 (N, side, side) in [0, 255] on the device."""
        frames = torch.from_numpy(self.frames.windowed(indices)).to(self.device)[:, None].float()
        if frames.shape[-2:] != (self.height, self.width):
            frames = F.interpolate(frames, (self.height, self.width), mode="bilinear", antialias=True, align_corners=False)
        frames = F.pad(frames, (0, self.side - self.width, 0, self.side - self.height))
        return frames[:, 0].clamp(0, 255)

    def _encode(self, indices: list[int]) -> dict[int, LevelMaps]:
        """Encode slices as one batch, keep their features and return them."""
        with torch.inference_mode(), self.autocast():
            output = self.model.forward_image(normalize(self.squares(indices)))
            if self._position_codes is None:
                self._position_codes = output["vision_pos_enc"][-1][:1].clone()
        levels = output["backbone_fpn"][-self.model.num_feature_levels :]
        dtype = torch.float16 if self.keep_half and levels[0].dtype == torch.float32 else levels[0].dtype
        encoded = {t: tuple(level[n].to(dtype, copy=True) for level in levels) for n, t in enumerate(indices)}
        with self._changed:
            self._slices.update(encoded)
            self._make_room(keep=len(encoded))
            self._bytes_since_release += len(encoded) * self._bytes_per_slice()
            release = self._bytes_since_release >= RELEASE_EVERY_BYTES and self.device.type == "cpu"
            if release:
                self._bytes_since_release = 0
        if release:  # Outside of the lock, because it takes some milliseconds.
            release_memory()
        return encoded

    def gather(self, indices) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[int, int]]]:
        """Return features of slices as SAM 2's `track_step` takes them.

        Returns:
            For each level the map (H * W, B, C); the position codes of the last level (H * W, B, C); for each level its (H, W).
        """
        known, _ = self._obtain(indices)
        maps = [known[t] for t in indices]
        levels = [torch.stack([m[n] for m in maps]) for n in range(len(maps[0]))]
        levels = [x.float() if x.dtype == torch.float16 else x for x in levels]
        sizes = [tuple(x.shape[-2:]) for x in levels]
        position = self._position_codes.expand(len(indices), -1, -1, -1).flatten(2).permute(2, 0, 1)
        return [x.flatten(2).permute(2, 0, 1) for x in levels], [position], sizes

    def to_square(self, points_xy: np.ndarray) -> np.ndarray:
        """Return pixel positions (P, 2) of a slice, as (x, y), in the square's pixels; pixel centres are whole numbers in both."""
        scale = np.array([self.width / self.frames.size[1], self.height / self.frames.size[0]])
        return (np.asarray(points_xy, float) + 0.5) * scale - 0.5

    def mask_to_square(self, mask: np.ndarray) -> torch.Tensor:
        """Return a painted slice bool (Y, X) as float32 {0, 1} (1, 1, side, side). It is never empty unless `mask` is."""
        m = torch.from_numpy(np.ascontiguousarray(mask)).to(self.device)[None, None].float()
        m = F.interpolate(m, (self.height, self.width), mode="bilinear", antialias=True, align_corners=False)
        binary = (m >= 0.5).float()
        if mask.any() and not binary.any():
            binary = (m >= m.max()).float()
        return F.pad(binary, (0, self.side - self.width, 0, self.side - self.height))

    def from_slices(self, logits: torch.Tensor, side: int) -> torch.Tensor:
        """Return logits (N, Y, X) of slices as logits (N, 1, side, side) of the square, the inverse of `to_slices`."""
        height, width = (max(1, round(n * side / self.side)) for n in (self.height, self.width))
        x = F.interpolate(logits[:, None].float(), (height, width), mode="bilinear", antialias=True, align_corners=False)
        return F.pad(x, (0, side - width, 0, side - height), value=PADDING_LOGIT)

    def to_slices(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits (N, h, w) of the square, at any resolution, as logits (N, Y, X) of the slices."""
        x = logits[:, None].float()
        if x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        x = x[..., : self.height, : self.width]
        if x.shape[-2:] != tuple(self.frames.size):
            x = F.interpolate(x, self.frames.size, mode="bilinear", align_corners=False)
        return x[:, 0]

    def masks(self, logits: torch.Tensor) -> tuple[np.ndarray, slice, slice]:
        """Return where `to_slices` is positive, computed only for the rows and columns that positive logits reach.

        `to_slices` is linear and separable, so it is a product with one matrix for rows and one for columns.

        Args:
            logits: (N, h, w) of the square, positive somewhere.

        Returns:
            Bool (N, y, x), and the rows and columns of the slices where it lies; everything else is negative.
        """
        to_rows, to_columns = self._resampling_matrices(logits.shape[-1], logits.device)
        positive = logits.amax(0) > 0
        rows, columns = _reached(to_rows, positive.any(1)), _reached(to_columns, positive.any(0))
        return (to_rows[rows] @ logits.float() @ to_columns[columns].T > 0).cpu().numpy(), rows, columns

    def _resampling_matrices(self, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `to_slices` does to columns and to rows of a square of this side, as matrices (Y, side) and (X, side)."""
        identity = torch.eye(side, device=device)[None, None]
        if side != self.side:
            identity = F.interpolate(identity, (self.side, side), mode="bilinear", align_corners=False)
        sizes = zip((self.height, self.width), self.frames.size, strict=True)
        return tuple(F.interpolate(identity[:, :, :n], (size, side), mode="bilinear", align_corners=False)[0, 0] for n, size in sizes)


def _reached(weights: torch.Tensor, sources: torch.Tensor) -> slice:
    """Return the rows of a matrix (N, M) of weights to which `sources`, bool (M,), contribute; no rows if these are padding only."""
    rows = torch.nonzero(weights[:, sources].any(1))[:, 0].tolist()
    return slice(rows[0], rows[-1] + 1) if rows else slice(0, 0)
