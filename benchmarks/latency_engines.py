"""The engines that `latency.py` measures, behind one interface.

Each engine has three methods. `warm(path)` loads the network by segmenting a small image. `open(path)` makes a volume known. And
`step(name, path, clicks)` segments with positive clicks on voxels (i, j, k) and returns a function that reads the outcome, so that the
reading is not measured. The `name` is that of the step, see `latency.py`. The heavy imports are within the engines, so that a process
loads only what its engine needs.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Outcome = Callable[[], tuple[np.ndarray, np.ndarray]]  # Returns the mask, bool (I, J, K), and the slices that the engine decided on.


def take_mask(file) -> np.ndarray:
    """Read the mask in the file of an answer and delete the file, as the server does after it has sent it."""
    import nrrd

    mask = nrrd.read(str(file))[0] > 0
    os.unlink(file)
    return mask


class App:
    """This app's own inference task, called as the server calls it."""

    def __init__(self, options):
        from lib.engine.options import Options
        from lib.engine.segmenter import Segmenter
        from lib.serving.active_learning.annotation_records import AnnotationRecords
        from lib.serving.inference.checkpoint_catalog import CheckpointCatalog
        from lib.serving.inference.tasks import Sam2Task, VolumeCache

        self.segmenter, self.volumes = Segmenter(), VolumeCache()
        self.options = Options(checkpoint=options.checkpoint, device=options.device)
        catalog = CheckpointCatalog.of(options.checkpoint, tempfile.mkdtemp(prefix="versions_"))
        records = AnnotationRecords(tempfile.mkdtemp(prefix="rounds_"))
        self.task = Sam2Task(self.segmenter, self.volumes, ["a"], catalog, records)
        self.request = {"device": options.device, "result_extension": ".nrrd", "result_compress": False}

    def warm(self, path) -> None:
        self.step("warm", path, [[3, 3, 1]])
        self.segmenter.wait()

    def open(self, path) -> None:
        """Encode the volume and wait until that is done."""
        self.segmenter.prefetch(self.volumes.get(str(path)), self.options)
        self.segmenter.wait()

    def step(self, name, path, clicks) -> Outcome:
        file, answer = self.task({"image": str(path), "image_id": Path(path).name, "foreground": clicks, "background": [], **self.request})
        return lambda: (take_mask(file), np.arange(len(answer["predicted_iou"])))


class Builtin:
    """MONAI Label's own task; its state is reset only where the prompts contradict what it remembers."""

    def __init__(self, options):
        from peers import Builtin as Task

        self.task = Task(options)

    def warm(self, path) -> None:
        self.step("warm", path, [[3, 3, 1]])

    def open(self, path) -> None:
        """Do nothing, because this task encodes a volume only when it gets a click."""

    def step(self, name, path, clicks) -> Outcome:
        reset = name in ("warm", "first_click_cold", "first_click", "second_label", "undo")
        file = self.task.run(path, clicks, reset=reset)

        def outcome():
            mask = take_mask(file)
            return mask, np.arange(min(c[2] for c in clicks), mask.shape[2])

        return outcome


class Official:
    """`SAM2VideoPredictor`, which keeps its state from step to step."""

    def __init__(self, options):
        from peers import Official as Peer

        self.peer = Peer(options)

    def warm(self, path) -> None:
        self.open(path)
        self.step("first_click", path, [[3, 3, 1]])

    def open(self, path) -> None:
        """Read the volume and give its slices to the predictor."""
        from lib.imaging.frames import Frames
        from lib.imaging.readers import read_volume

        self.volume = read_volume(path)
        self.frames = Frames.of(self.volume)
        self.peer.open(self.frames)

    def step(self, name, path, clicks) -> Outcome:
        from lib.prompts.volume_prompts import group_by_slice, make_prompts

        if name == "first_click_cold":
            self.open(path)
        if name.startswith("first_click"):
            self.peer.predictor.reset_state(self.peer.state)
        prompts = group_by_slice(make_prompts(self.volume, positive=clicks, axis=self.frames.axis), self.frames)
        logits = self.peer.track(prompts, structure=2 if name == "second_label" else 1)
        return lambda: (self.peer.mask(logits), np.arange(len(self.frames)))


ENGINE_CLASSES = {"app": App, "builtin": Builtin, "official": Official}
