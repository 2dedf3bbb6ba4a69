"""What this engine is measured against, behind one call: `segment(case, volume, frames, prompts) -> bool (I, J, K)`, and, as
`OfficialMethod` and `BuiltinMethod`, behind the interface of `main.py evaluate` (lib/evaluation/methods/method.py)."""

import logging
import os
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import torch
from sam2 import sam2_video_predictor, sam2_video_predictor_legacy
from scipy import ndimage
from skimage.segmentation import random_walker

from lib.common.errors import PromptError
from lib.evaluation.methods.method import PLAIN, Annotations, Answer, How
from lib.model import checkpoints, device
from lib.model.build import CONFIG_DIRS, build_official, normalize
from lib.model.features import SliceFeatures
from lib.prompts.volume_prompts import SlicePrompt, group_by_slice, make_prompts


class Builtin:
    """MONAI Label's own `monailabel.sam2.infer.Sam2InferTask`, with the same weights, as a server would call it."""

    name = "builtin"

    def __init__(self, options):
        os.environ.setdefault("MONAI_LABEL_DATASTORE_CACHE_PATH", tempfile.mkdtemp(prefix="builtin_"))
        from monailabel.config import settings

        checkpoint = checkpoints.find(options.checkpoint)
        folder = Path(tempfile.mkdtemp(prefix="builtin_model_"))
        config = next(d / checkpoint.config for d in CONFIG_DIRS if (d / checkpoint.config).is_file())
        shutil.copy(config, folder / "config.yaml")
        weights = {k: v.float() for k, v in checkpoints.read_weights(checkpoint.path).items()}
        torch.save({"model": weights}, folder / "weights.pt")
        settings.MONAI_SAM_MODEL_PT = "file:///weights.pt"  # already in the folder, so nothing is fetched
        settings.MONAI_SAM_MODEL_CFG = "file:///config.yaml"
        settings.MONAI_LABEL_DATASTORE_CACHE_PATH = os.environ["MONAI_LABEL_DATASTORE_CACHE_PATH"]
        from monailabel.sam2.infer import Sam2InferTask
        from monailabel.transform.writer import Writer

        self.device = str(options.device if options.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu"))
        for name in ("monailabel", "sam2", "root"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.task = Sam2InferTask(str(folder), dimension=3, writer=Writer(ref_image="image"))

    def segment(self, case, volume, frames, prompts) -> np.ndarray:
        """The task knows only slices along k, so the volume must be sliced there."""
        if frames.axis != 2:
            raise ValueError("MONAI Label's built-in task can only step along the last axis.")
        request = self._request(case.image, prompts.get("positive", []), prompts.get("negative", []), reset=True)
        for low, high in prompts.get("boxes", []):  # in the order in which the task reads it
            request["roi"] = [int(v) for v in (low[0], low[1], high[0], high[1], low[2], low[2] + 1)]
        mask, _ = self.task(request)
        return np.asarray(mask) > 0

    def run(self, image: Path, clicks: list, *, reset: bool) -> Path:
        """The file of the mask of clicks inside, for the server to send: NRRD, not compressed, as Slicer asks for; what the task
        remembers of this image counts on unless `reset`."""
        how = {"result_write_to_file": True, "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
        file, _ = self.task({**self._request(image, clicks, [], reset=reset), **how})
        return Path(file)

    def _request(self, image, foreground, background, *, reset: bool) -> dict:
        return {
            "image": str(image), "device": self.device, "reset_state": reset, "result_write_to_file": False,
            "foreground": [list(v) for v in foreground], "background": [list(v) for v in background], "roi": [],
        }  # fmt: skip


class Official:
    """`SAM2VideoPredictor` on the windowed slices in memory, both directions, every annotated slice as a conditioning frame.

    With `legacy`, the predictor of the first release of SAM 2 as it comes: slices that are annotated after propagation are
    corrections and do not condition. That of today decodes such slices again, without their clicks, when it propagates.
    """

    name = "official"

    def __init__(self, options, *, legacy: bool = False):
        found = checkpoints.find(options.checkpoint)
        self.device = device.resolve_device(options.device)
        self.autocast = device.autocast_factory(self.device)
        self._module = sam2_video_predictor_legacy if legacy else sam2_video_predictor
        how = {"_target_": f"{self._module.__name__}.SAM2VideoPredictor", "add_all_frames_to_correct_as_cond": not legacy}
        self.predictor = build_official(found.config, image_size=found.image_size, **how)
        weights = checkpoints.read_weights(found.path)
        self.predictor.load_state_dict({k: v.float() for k, v in weights.items()})
        self.predictor.to(self.device)
        if self.autocast is nullcontext:  # memories are kept in bfloat16; it counts on autocast to bring them back
            self.predictor.memory_attention.register_forward_pre_hook(
                lambda _, a, k: (a, {n: x.float() if torch.is_tensor(x) else x for n, x in k.items()}), with_kwargs=True
            )
        self.features = self.state = self._case = None

    def open(self, frames) -> None:
        """Takes a volume; whatever was known of another one is forgotten."""
        self.features = SliceFeatures(self.predictor, frames, self.device, self.autocast, 1)
        squares = normalize(self.features.squares(range(len(frames))))
        side = self.predictor.image_size
        frames_of = patch.object(self._module, "load_video_frames", lambda **_: (squares, side, side))  # it reads files only
        with frames_of, torch.inference_mode(), self.autocast():
            self.state = self.predictor.init_state(video_path="")

    def add(self, t: int, p: SlicePrompt, structure: int = 1, one_by_one: bool = False) -> torch.Tensor:
        """Logits (h, w) of slice t from a prompt, all clicks at once or one after the other on the logits of those before."""
        with torch.inference_mode(), self.autocast():
            if p.mask is not None:
                mask = self.features.mask_to_square(p.mask)[0, 0] > 0
                return self.predictor.add_new_mask(self.state, t, structure, mask)[2][-1, 0]
            xy = self.features.to_square(p.points)
            corners, clicks = p.labels > 1, np.flatnonzero(p.labels < 2)
            for n in range(1, len(clicks) + 1) if one_by_one and len(clicks) else (len(clicks),):
                _, ids, out = self.predictor.add_new_points_or_box(
                    self.state, t, structure, points=xy[clicks[:n]].tolist() if n else None,
                    labels=p.labels[clicks[:n]].tolist() if n else None,
                    box=xy[corners].ravel().tolist() if corners.any() else None, normalize_coords=True,
                )  # fmt: skip
            return out[ids.index(structure), 0]

    def propagate(self, backward_from: int, forward_from: int, directions=(False, True), structure: int = 1) -> dict[int, torch.Tensor]:
        """Logits (h, w) of each slice; directions are whether in reverse."""
        logits = {}
        with patch.object(self._module, "tqdm", lambda x, **_: x), torch.inference_mode(), self.autocast():
            for reverse in directions:
                start = backward_from if reverse else forward_from
                for t, ids, out in self.predictor.propagate_in_video(self.state, start_frame_idx=start, reverse=reverse):
                    if t not in logits or reverse:
                        logits[t] = out[ids.index(structure), 0].float().cpu()
        return logits

    def track(self, prompts: dict[int, SlicePrompt], structure: int = 1) -> dict[int, torch.Tensor]:
        """Logits (h, w) of each slice, from the prompts of a few."""
        for t, p in prompts.items():
            self.add(t, p, structure)
        return self.propagate(max(prompts), min(prompts), structure=structure)

    def mask(self, logits: dict[int, torch.Tensor]) -> np.ndarray:
        """bool (I, J, K) of what `track` gave."""
        frames = self.features.frames
        stack = np.zeros((len(frames), *frames.size), bool)
        for t, x in logits.items():
            stack[t] = (self.features.to_slices(x[None])[0] > 0).numpy()
        return frames.to_volume(stack)

    def segment(self, case, volume, frames, prompts) -> np.ndarray:
        if case is not self._case:
            self.open(frames)
            self._case = case
        self.predictor.reset_state(self.state)
        return self.mask(self.track(group_by_slice(make_prompts(volume, axis=frames.axis, **prompts), frames)))


class OfficialMethod:
    """`Official` under evaluation. Both directions start at the slice that was annotated first (He et al. 2024, section 2.2);
    "forward" goes from the volume's first slice, which the annotated one conditions from ahead, as in Dong et al.'s code."""

    name, takes_masks = "official", True

    def __init__(self, options):
        self._options, self._peers, self._frames = options, {}, None
        self._said: dict[int, str] = {}

    def open(self, frames) -> None:
        if frames is not self._frames:
            self._frames, self._opened = frames, set()

    def segment(self, annotations: Annotations, how: How = PLAIN) -> Answer:
        peer = self._peer(legacy=not how.conditioning)
        first = next(iter(annotations))
        changed = [t for t, p in annotations.items() if self._said.get(t) != p.key]
        gone_on = how.propagate and not how.conditioning and self._said and first not in changed and set(self._said) <= set(annotations)
        if not gone_on:
            peer.predictor.reset_state(peer.state)
            changed, self._said = list(annotations), {}
        # Corrections of the legacy predictor are made on what was propagated before them.
        groups = [[t] for t in changed] if how.propagate and not how.conditioning else [changed]
        logits: dict[int, torch.Tensor] = {}
        for group in groups:
            shown = {t: peer.add(t, annotations[t], one_by_one=how.one_by_one and t == first).float().cpu() for t in group}
            if how.propagate:
                forward = how.direction == "forward"
                logits = peer.propagate(first, 0 if forward else first, (False,) if forward else (False, True))
            else:
                logits |= shown
        self._said = {t: p.key for t, p in annotations.items()} if how.propagate and not how.conditioning else {}
        return Answer(self._frames.from_volume(peer.mask(logits)))

    def _peer(self, legacy: bool) -> Official:
        if legacy not in self._peers:
            self._peers[legacy] = Official(self._options, legacy=legacy)
        peer = self._peers[legacy]
        if legacy not in self._opened:
            peer.open(self._frames)
            self._opened.add(legacy)
            self._said = {}
        return peer


class BuiltinMethod:
    """`Builtin` under evaluation, on the voxels of the frames with the slicing axis last (it knows no other). It goes forward only,
    takes clicks and one box, and cannot be told that a slice is empty."""

    name, takes_masks = "builtin", False

    def __init__(self, options):
        self._task, self._frames = Builtin(options), None
        self._folder = tempfile.TemporaryDirectory(prefix="builtin_images_")

    def open(self, frames) -> None:
        if frames is self._frames:
            return
        self._frames = frames
        self._image = Path(self._folder.name) / f"{frames.volume.key}_{frames.axis}.nii.gz"
        if not self._image.is_file():
            affine = np.diag([*frames.pixel_mm[::-1], frames.slice_mm, 1.0])
            nib.save(nib.Nifti1Image(frames.from_volume(frames.volume.array).transpose(2, 1, 0), affine), self._image)

    def segment(self, annotations: Annotations, how: How = PLAIN) -> Answer:
        clicks: dict[bool, list] = {True: [], False: []}
        request = self._task._request(self._image, clicks[True], clicks[False], reset=True)
        for t, p in annotations.items():
            if p.mask is not None and p.mask.any():
                raise PromptError("MONAI Label's built-in task takes no painted slices.")
            corners = [xy for xy, label in zip(p.points, p.labels, strict=True) if label > 1]
            if corners and request["roi"]:
                raise PromptError("MONAI Label's built-in task takes one box.")
            if corners:
                request["roi"] = [int(v) for v in (*np.rint(corners[0] + 0.5), *np.rint(corners[1] - 0.5), t, t + 1)]
            for (x, y), label in zip(p.points, p.labels, strict=True):
                if label < 2:
                    request["foreground" if label else "background"].append([int(x), int(y), int(t)])
        mask = np.asarray(self._task.task(request)[0]).transpose(2, 1, 0) > 0
        if not how.propagate:
            mask[[t for t in range(len(mask)) if t not in annotations]] = False
        return Answer(mask)


class RandomWalker:
    """scikit-image's random walker in 3D: small balls round the clicks are seeds (a single voxel hardly spreads), the volume's
    faces and, on its slice, what lies outside a box are background; within a box the middle is foreground."""

    name = "classical"
    voxels = 250_000

    def segment(self, case, volume, frames, prompts) -> np.ndarray:
        low, high = frames.bounds
        image = np.clip((volume.array.astype(np.float32) - low) / (high - low), 0, 1)
        factors = self._factors(volume)
        small = ndimage.zoom(image, factors, order=1)
        scale = (np.array(small.shape) - 1) / np.maximum(np.array(volume.shape) - 1, 1)
        seeds = np.zeros(small.shape, np.int8)
        for axis in range(3):
            if axis != frames.axis:  # slices at the ends often hold the structure
                for end in (0, -1):
                    seeds[(slice(None),) * axis + (end,)] = 2
        for corners in prompts.get("boxes", []):
            a, b = (np.rint(np.array(c) * scale).astype(int) for c in corners)
            seeds[(slice(None),) * frames.axis + (a[frames.axis],)] = 2
            seeds[tuple(slice(p, q + 1) for p, q in zip(a, b, strict=True))] = 0
            _ball(seeds, (a + b) // 2, 1)
        for label, voxels in ((2, prompts.get("negative", [])), (1, prompts.get("positive", []))):
            for v in voxels:
                _ball(seeds, np.rint(np.array(v) * scale).astype(int), label)
        spacing = volume.spacing_mm * np.array(volume.shape) / np.array(small.shape)
        chance = random_walker(small, seeds, beta=130, mode="cg_j", tol=1e-3, spacing=spacing / spacing.min(), return_full_prob=True)
        back = np.array(volume.shape) / np.array(small.shape)
        return ndimage.zoom(chance[0], back, order=1)[tuple(slice(n) for n in volume.shape)] > 0.5

    def _factors(self, volume) -> np.ndarray:
        """Shrinks fine axes first, until the linear system is of a practical size."""
        shape, sizes = np.array(volume.shape, float), volume.spacing_mm.astype(float)
        factors = np.ones(3)
        while (shape * factors).prod() > self.voxels:
            finest = np.argmin(sizes / factors)
            factors[finest] *= 0.95
        return factors


def _ball(seeds, centre, label, radius: int = 2) -> None:
    """Marks voxels around `centre`, leaving other seeds as they are except at the centre itself."""
    low = np.maximum(centre - radius, 0)
    block = seeds[tuple(slice(a, c + radius + 1) for a, c in zip(low, centre, strict=True))]
    index = np.indices(block.shape).T + low - centre
    near = ((index**2).sum(-1) <= radius**2).T
    block[near & (block == 0)] = label
    seeds[tuple(centre)] = label
