"""This project's engine as a method under evaluation."""

from dataclasses import replace

from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.evaluation.methods.method import PLAIN, Annotations, Answer, How, to_voxels
from lib.imaging.frames import Frames


class App:
    """The engine as the server uses it.

    It decodes clicks in its own way (`How.one_by_one` changes nothing), and every annotated slice conditions
    (`How.conditioning` neither). Forward means away from the annotated slices: those before the first one stay empty.
    """

    name, takes_masks = "app", True

    def __init__(self, options: Options):
        self.options, self._segmenter = options, Segmenter()
        self._frames: Frames | None = None

    def open(self, frames: Frames) -> None:
        self._frames = frames

    def segment(self, annotations: Annotations, how: How = PLAIN) -> Answer:
        frames = self._frames
        low, high = frames.bounds
        options = replace(
            self.options, window=f"{float(low)!r},{float(high)!r}", axis=str(frames.axis), propagate=how.propagate,
            direction=how.direction,
        )  # fmt: skip
        prompts = self._segmenter.prompts(frames.volume, options, **to_voxels(annotations, frames))
        result = self._segmenter.segment(frames.volume, prompts, options)
        return Answer(frames.from_volume(result.mask), result)
