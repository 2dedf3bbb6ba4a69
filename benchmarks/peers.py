"""Other implementations of SAM 2 that this app is compared with: the official video predictor and MONAI Label's built-in task.

`Official` and `Builtin` wrap them as they are. `OfficialMethod` and `BuiltinMethod` offer them through the interface of the evaluation
(lib/evaluation/methods/method.py).
"""

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

from lib.common.errors import PromptError
from lib.evaluation.methods.method import DEFAULT_MODE, Annotations, Prediction, PropagationMode
from lib.model import checkpoints, device
from lib.model.build import CONFIG_DIRS, build_official, normalize
from lib.model.features import SliceFeatures
from lib.prompts.volume_prompts import SlicePrompt


class Builtin:
    """MONAI Label's own `monailabel.sam2.infer.Sam2InferTask` with the given checkpoint, called as a server would call it."""

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
        # The task downloads a model only if its file is missing; the files are in the folder already, so these URLs are never read.
        settings.MONAI_SAM_MODEL_PT = "file:///weights.pt"
        settings.MONAI_SAM_MODEL_CFG = "file:///config.yaml"
        settings.MONAI_LABEL_DATASTORE_CACHE_PATH = os.environ["MONAI_LABEL_DATASTORE_CACHE_PATH"]
        from monailabel.sam2.infer import Sam2InferTask
        from monailabel.transform.writer import Writer

        self.device = str(options.device if options.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu"))
        for name in ("monailabel", "sam2", "root"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.task = Sam2InferTask(str(folder), dimension=3, writer=Writer(ref_image="image"))

    def run(self, image: Path, clicks: list, *, reset: bool) -> Path:
        """Segment with positive clicks and return the file of the mask that a server would send.

        The file is an uncompressed NRRD, as Slicer requests it.

        Args:
            clicks: Voxels (i, j, k).
            reset: False keeps what the task remembers of earlier clicks on this image.
        """
        output = {"result_write_to_file": True, "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
        file, _ = self.task({**self.make_request(image, clicks, [], reset=reset), **output})
        return Path(file)

    def make_request(self, image, foreground, background, *, reset: bool) -> dict:
        """Return the request for clicks on voxels (i, j, k); its answer is an array, not a file."""
        return {
            "image": str(image), "device": self.device, "reset_state": reset, "result_write_to_file": False,
            "foreground": [list(v) for v in foreground], "background": [list(v) for v in background], "roi": [],
        }  # fmt: skip


class Official:
    """SAM 2's own `SAM2VideoPredictor` on the windowed slices in memory.

    It propagates in both directions, and every annotated slice is a conditioning frame. When today's predictor propagates, it decodes
    slices that were annotated after an earlier propagation again, without their clicks.

    Args:
        options: Its checkpoint and device are used.
        legacy: True takes the predictor of the first release of SAM 2 with its own settings. Slices that are annotated after a
            propagation are corrections then, and not conditioning frames.
    """

    name = "official"

    def __init__(self, options, *, legacy: bool = False):
        checkpoint = checkpoints.find(options.checkpoint)
        self.device = device.resolve_device(options.device)
        self.autocast = device.autocast_factory(self.device)
        self._module = sam2_video_predictor_legacy if legacy else sam2_video_predictor
        overrides = {"_target_": f"{self._module.__name__}.SAM2VideoPredictor", "add_all_frames_to_correct_as_cond": not legacy}
        self.predictor = build_official(checkpoint.config, image_size=checkpoint.image_size, **overrides)
        weights = checkpoints.read_weights(checkpoint.path)
        self.predictor.load_state_dict({k: v.float() for k, v in weights.items()})
        self.predictor.to(self.device)
        if self.autocast is nullcontext:
            # The predictor keeps memories in bfloat16 and relies on autocast to convert them back.
            self.predictor.memory_attention.register_forward_pre_hook(
                lambda _, args, kwargs: (args, {k: v.float() if torch.is_tensor(v) else v for k, v in kwargs.items()}), with_kwargs=True
            )
        self.features = self.state = None

    def open(self, frames) -> None:
        """Start with the slices of a new volume and forget any earlier one."""
        self.features = SliceFeatures(self.predictor, frames, self.device, self.autocast, 1)
        squares = normalize(self.features.squares(range(len(frames))))
        side = self.predictor.image_size
        # The predictor can only read frames from files, so its reader is replaced.
        frames_from_memory = patch.object(self._module, "load_video_frames", lambda **_: (squares, side, side))
        with frames_from_memory, torch.inference_mode(), self.autocast():
            self.state = self.predictor.init_state(video_path="")

    def add(self, t: int, prompt: SlicePrompt, structure: int = 1, one_by_one: bool = False) -> torch.Tensor:
        """Add the prompt of slice t and return that slice's mask logits, (h, w).

        Args:
            structure: The predictor's number of the object.
            one_by_one: True decodes the clicks one after the other, each with the logits of the clicks before it.
        """
        with torch.inference_mode(), self.autocast():
            if prompt.mask is not None:
                mask = self.features.mask_to_square(prompt.mask)[0, 0] > 0
                return self.predictor.add_new_mask(self.state, t, structure, mask)[2][-1, 0]
            points_xy = self.features.to_square(prompt.points)
            corners, clicks = prompt.labels > 1, np.flatnonzero(prompt.labels < 2)
            for n in range(1, len(clicks) + 1) if one_by_one and len(clicks) else (len(clicks),):
                _, ids, logits = self.predictor.add_new_points_or_box(
                    self.state, t, structure, points=points_xy[clicks[:n]].tolist() if n else None,
                    labels=prompt.labels[clicks[:n]].tolist() if n else None,
                    box=points_xy[corners].ravel().tolist() if corners.any() else None, normalize_coords=True,
                )  # fmt: skip
            return logits[ids.index(structure), 0]

    def propagate(self, backward_from: int, forward_from: int, directions=(False, True), structure: int = 1) -> dict[int, torch.Tensor]:
        """Return the mask logits, (h, w), of each slice that propagation reaches.

        Args:
            backward_from: Slice at which propagation towards lower indices starts.
            forward_from: Slice at which propagation towards higher indices starts.
            directions: For each propagation, in this order, whether it goes backward. Where both reach a slice, backward counts.
        """
        logits_by_slice = {}
        with patch.object(self._module, "tqdm", lambda x, **_: x), torch.inference_mode(), self.autocast():
            for reverse in directions:
                start = backward_from if reverse else forward_from
                for t, ids, logits in self.predictor.propagate_in_video(self.state, start_frame_idx=start, reverse=reverse):
                    if t not in logits_by_slice or reverse:
                        logits_by_slice[t] = logits[ids.index(structure), 0].float().cpu()
        return logits_by_slice

    def track(self, prompts: dict[int, SlicePrompt], structure: int = 1) -> dict[int, torch.Tensor]:
        """Return the mask logits, (h, w), of each slice, from the prompts of some slices."""
        for t, prompt in prompts.items():
            self.add(t, prompt, structure)
        return self.propagate(max(prompts), min(prompts), structure=structure)

    def mask(self, logits_by_slice: dict[int, torch.Tensor]) -> np.ndarray:
        """Return the mask, bool (I, J, K), of the logits of `track`; slices without logits are empty."""
        frames = self.features.frames
        mask = np.zeros((len(frames), *frames.size), bool)
        for t, logits in logits_by_slice.items():
            mask[t] = (self.features.to_slices(logits[None])[0] > 0).numpy()
        return frames.to_volume(mask)


class OfficialMethod:
    """`Official` as a method under evaluation.

    Both directions start at the slice that was annotated first (He et al. 2024, section 2.2). The direction "forward" starts at the
    volume's first slice, with the annotated slice, further ahead, as conditioning frame, as in the code of Dong et al.
    """

    name, takes_masks, takes_clicks = "official", True, True

    def __init__(self, options):
        self._options, self._peers, self._frames = options, {}, None
        self._prompt_keys: dict[int, str] = {}  # Those of the prompts that the legacy predictor has already propagated.

    def open(self, frames) -> None:
        if frames is not self._frames:
            self._frames, self._opened = frames, set()

    def segment(self, annotations: Annotations, mode: PropagationMode = DEFAULT_MODE) -> Prediction:
        peer = self._peer(legacy=not mode.corrections_condition)
        corrects = mode.propagate and not mode.corrections_condition
        first = next(iter(annotations))
        changed = [t for t, prompt in annotations.items() if self._prompt_keys.get(t) != prompt.key]
        continues = corrects and self._prompt_keys and first not in changed and set(self._prompt_keys) <= set(annotations)
        if not continues:
            peer.predictor.reset_state(peer.state)
            changed, self._prompt_keys = list(annotations), {}
        # The legacy predictor corrects what it has propagated, so it propagates after each annotated slice.
        batches = [[t] for t in changed] if corrects else [changed]
        logits: dict[int, torch.Tensor] = {}
        for batch in batches:
            one_by_one = mode.clicks_one_by_one
            prompted = {t: peer.add(t, annotations[t], one_by_one=one_by_one and t == first).float().cpu() for t in batch}
            if mode.propagate:
                forward = mode.direction == "forward"
                logits = peer.propagate(first, 0 if forward else first, (False,) if forward else (False, True))
            else:
                logits |= prompted
        self._prompt_keys = {t: prompt.key for t, prompt in annotations.items()} if corrects else {}
        return Prediction(self._frames.from_volume(peer.mask(logits)))

    def _peer(self, legacy: bool) -> Official:
        """Return one of the two predictors, opened on the present volume."""
        if legacy not in self._peers:
            self._peers[legacy] = Official(self._options, legacy=legacy)
        peer = self._peers[legacy]
        if legacy not in self._opened:
            peer.open(self._frames)
            self._opened.add(legacy)
            self._prompt_keys = {}
        return peer


class BuiltinMethod:
    """`Builtin` as a method under evaluation.

    The task knows only slices along the last axis, so it gets an image whose last axis is the slicing axis. It propagates forward
    only, takes clicks and at most one box, and cannot be told that a slice is empty. The box spans the slices of a 3D box.
    """

    name, takes_masks, takes_clicks = "builtin", False, True

    def __init__(self, options):
        self._builtin, self._frames = Builtin(options), None
        self._folder = tempfile.TemporaryDirectory(prefix="builtin_images_")

    def open(self, frames) -> None:
        if frames is self._frames:
            return
        self._frames = frames
        self._image = Path(self._folder.name) / f"{frames.volume.key}_{frames.axis}.nii.gz"
        if not self._image.is_file():
            affine = np.diag([*frames.pixel_mm[::-1], frames.slice_mm, 1.0])
            nib.save(nib.Nifti1Image(frames.from_volume(frames.volume.array).transpose(2, 1, 0), affine), self._image)

    def segment(self, annotations: Annotations, mode: PropagationMode = DEFAULT_MODE) -> Prediction:
        request = self._builtin.make_request(self._image, [], [], reset=True)
        for t, prompt in annotations.items():
            if prompt.mask is not None and prompt.mask.any():
                raise PromptError("MONAI Label's built-in task takes no painted slices.")
            corners = [xy for xy, label in zip(prompt.points, prompt.labels, strict=True) if label > 1]
            if corners and request["roi"]:
                raise PromptError("MONAI Label's built-in task takes one box.")
            if corners:
                low, high = np.rint(corners[0] + 0.5), np.rint(corners[1] - 0.5)
                first, last = mode.box_slices or (t, t)
                request["roi"] = [int(v) for v in (*low, *high, first, last + 1)]
            for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
                if label < 2:
                    request["foreground" if label else "background"].append([int(x), int(y), int(t)])
        mask = np.asarray(self._builtin.task(request)[0]).transpose(2, 1, 0) > 0
        if not mode.propagate:
            mask[[t for t in range(len(mask)) if t not in annotations]] = False
        return Prediction(mask)
