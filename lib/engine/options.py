"""The options of a segmentation, and the slices that they allow."""

from collections.abc import Iterable
from dataclasses import dataclass

from lib.common.errors import OptionError, PromptError
from lib.imaging import masks
from lib.imaging.frames import Frames
from lib.prompts.volume_prompts import Prompts

DIRECTIONS = ("both", "forward", "backward")


@dataclass(frozen=True)
class Options:
    """The choices of a request.

    Attributes:
        checkpoint: Name or path, see `lib.model.checkpoints.find`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        window, axis: Intensity window and slicing axis, see `lib.imaging.frames`.
        direction: "both", or only "forward" (higher slice indices) or "backward".
        z_range: First and last slice to which the structure is confined, or None for all.
        components: Which connected components to keep, see `lib.imaging.masks.keep_components`.
        propagate: False leaves all slices but the annotated ones empty.
        stop_mm: Beyond the outermost annotated slices, tracking ends when the object has been absent for that distance; 0: never.
        obey: Whether masks are made to obey clicks and boxes, see `lib.propagation.obedience`, or are the network's own answer.
        refine: Whether tracked masks are adapted to the image before they are remembered, see `lib.propagation.mask_refiner`, and
            slices left empty between annotated ones are filled, see `lib.propagation.gap_filling`, and whether all masks are adapted to
            all prompts at the end, see `lib.propagation.volume_correction`.
        focus: Whether networks for small images track a small structure in its surroundings only, enlarged.
        stride: Track every so many slices and interpolate the others; 0 chooses by the slice distance (networks for small images only).
        batch: Largest number of slices or passes that a GPU computes at once; 0 chooses it by the device.

    Raises:
        OptionError: An option has an unknown or impossible value.
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
    obey: bool = True
    refine: bool = True
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


def slice_range(frames: Frames, prompts: Prompts, options: Options, prompted_slices: Iterable[int]) -> tuple[int, int]:
    """Return the first and last slice that may be filled, by `options.z_range` and the 3D region of the prompts.

    Raises:
        PromptError: The range is empty, or a slice with prompts lies outside of it.
    """
    low, high = 0, len(frames) - 1
    if options.z_range is not None:
        low, high = max(low, min(options.z_range)), min(high, max(options.z_range))
    if prompts.roi is not None:
        low, high = max(low, prompts.roi[0][frames.axis]), min(high, prompts.roi[1][frames.axis])
    if low > high:
        raise PromptError(f"The range of slices is empty; slices go from 0 to {len(frames) - 1}.")
    outside = [t for t in prompted_slices if not low <= t <= high]
    if outside:
        raise PromptError(f"Slice {outside[0]} has prompts but lies outside the chosen range {low} to {high}.")
    return low, high
