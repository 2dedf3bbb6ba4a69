"""This project's engine as a method under evaluation."""

from dataclasses import replace

from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.evaluation.methods.method import DEFAULT_MODE, Annotations, Prediction, PropagationMode, to_voxel_prompts
from lib.imaging.frames import Frames


class AppMethod:
    """The engine as the server uses it; see `lib.evaluation.methods.method.Method`.

    The engine always decodes clicks in its own way, and every annotated slice is a conditioning frame, so that
    `clicks_one_by_one` and `corrections_condition` have no effect. With the direction "forward", slices before the first
    annotated one stay empty.
    """

    name, takes_masks, takes_clicks = "app", True, True

    def __init__(self, options: Options):
        self.options, self._segmenter = options, Segmenter()
        self._frames: Frames | None = None

    def open(self, frames: Frames) -> None:
        self._frames = frames

    def segment(self, annotations: Annotations, mode: PropagationMode = DEFAULT_MODE) -> Prediction:
        frames = self._frames
        low, high = frames.bounds
        options = replace(
            self.options, window=f"{float(low)!r},{float(high)!r}", axis=str(frames.axis), propagate=mode.propagate,
            direction=mode.direction,
        )  # fmt: skip
        prompts = self._segmenter.prompts(frames.volume, options, **to_voxel_prompts(annotations, frames))
        result = self._segmenter.segment(frames.volume, prompts, options)
        return Prediction(frames.from_volume(result.mask), result)
