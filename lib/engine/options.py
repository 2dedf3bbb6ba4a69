"""What a user can choose about a segmentation."""

from dataclasses import dataclass

from lib.common.errors import OptionError, PromptError
from lib.imaging import masks
from lib.imaging.frames import Frames
from lib.prompts.volume_prompts import Prompts

DIRECTIONS = ("both", "forward", "backward")


@dataclass(frozen=True)
class Options:
    """What a user can choose.

    Attributes:
        checkpoint: name or path, see `lib.model.checkpoints.find`.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        window, axis: see `lib.imaging.frames`.
        direction: "both", or "forward" (higher slice indices) or "backward" only.
        z_range: slices (low, high), both included, to which the structure is confined; None for all.
        components: see `lib.imaging.masks.keep_components`.
        propagate: False leaves all slices but the annotated ones empty.
        focus: networks for small squares track small structures in their surroundings only, enlarged; not everywhere.
        stride: track every so many slices, interpolate the others; 0 = by the slice distance, for networks for small squares.
        batch: most slices or gaps that go through the network at once; 0 = what suits the device.
        stop_mm: beyond the outermost annotations, tracking ends when the object has been absent for that distance; 0 = never.
    """

    checkpoint: str = "embedded"
    device: str = "auto"
    window: str = "auto"
    axis: str = "auto"
    direction: str = "both"
    z_range: tuple[int, int] | None = None
    components: str = "annotated"
    propagate: bool = True
    stop_mm: float = 6.0
    focus: bool = True
    stride: int = 0
    batch: int = 0

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise OptionError(f"Unknown direction {self.direction!r}: use {', '.join(DIRECTIONS)}.")
        if self.components not in masks.COMPONENTS:
            raise OptionError(f"Unknown components {self.components!r}: use {', '.join(masks.COMPONENTS)}.")
        if self.stride < 0:
            raise OptionError("stride must be a number of slices, or 0.")
        if not 0 <= self.stop_mm < float("inf"):
            raise OptionError("stop_mm must be a distance in millimetres, or 0.")


def slice_range(frames: Frames, prompts: Prompts, options: Options, said) -> tuple[int, int]:
    """Slices to fill (low, high), both included."""
    low, high = 0, len(frames) - 1
    if options.z_range is not None:
        low, high = max(low, min(options.z_range)), min(high, max(options.z_range))
    if prompts.roi is not None:
        low, high = max(low, prompts.roi[0][frames.axis]), min(high, prompts.roi[1][frames.axis])
    if low > high:
        raise PromptError(f"The range of slices is empty; slices go from 0 to {len(frames) - 1}.")
    outside = [t for t in said if not low <= t <= high]
    if outside:
        raise PromptError(f"Slice {outside[0]} has prompts but lies outside the chosen range {low} to {high}.")
    return low, high
