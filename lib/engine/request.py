"""Parse requests, as OHIF, 3D Slicer and scripts send them, to prompts and options.

All fields but the prompts are optional; without any prompt, a server answers with an empty mask. Voxels are [i, j, k].
    foreground, background: Lists of voxels inside and outside of the structure.
    roi: [i0, i1, j0, j1, k0, k1]; each pair in either order, possibly outside of the volume.
    boxes: List of pairs of voxels.
    absent: List of slice indices where the structure is not.
    slice: Index of the slice that a 2D client displays.
    mask_slices: Indices of the slices of an uploaded or saved label that are painted prompts; default: all slices that are not empty.
    mask_tag: Tag of the saved label, by default "final".
    device, window, axis, direction, z_range, components, largest_cc, checkpoint, obey, refine, focus, stop_mm, stride: See
        `lib.engine.options`.
"""

import json
import math
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from lib.common.errors import OptionError, PromptError
from lib.engine.options import Options
from lib.imaging.frames import resolve_axis
from lib.imaging.readers import read_mask
from lib.imaging.volume import Volume
from lib.prompts.volume_prompts import Prompts, make_prompts


def parse_options(request: dict, *, propagate: bool = True) -> Options:
    """Return the options of a request. Unknown fields are ignored; a list (an untouched drop-down) means its first entry.

    Raises:
        OptionError: A field has an impossible value.
    """
    def value(name, default):
        v = request.get(name, default)
        v = v[0] if isinstance(v, (list, tuple)) and v and name != "z_range" else v
        return default if v is None or v == "" or v == [] else v

    components = "largest" if parse_bool(value("largest_cc", False)) else str(value("components", "annotated"))
    return Options(
        checkpoint=str(value("checkpoint", "embedded")), device=str(value("device", "auto")),
        window=str(value("window", "auto")), axis=str(value("axis", "auto")),
        direction=str(value("direction", "both")), z_range=_z_range(value("z_range", None)),
        components=components, propagate=propagate,
        obey=parse_bool(value("obey", True)), refine=parse_bool(value("refine", True)), focus=parse_bool(value("focus", True)),
        stop_mm=_number("stop_mm", "a distance in millimetres", value("stop_mm", 6.0)),
        stride=int(_number("stride", "a number of slices", value("stride", 0))),
    )  # fmt: skip


def parse_prompts(
    request: dict, volume: Volume, options: Options, *, painted: str | None = None, saved: np.ndarray | None = None
) -> Prompts:
    """Return the prompts of a request.

    Args:
        painted: Path of a label map whose non-empty slices, or those of "mask_slices", are painted prompts. Default: the request's upload.
        saved: Mask bool (I, J, K) of the saved label, which is taken when nothing was uploaded.

    Raises:
        PromptError: A field is no list of numbers, or the prompts make no sense (see `make_prompts`).
        VolumeError: The label map cannot be read or does not fit the volume.
    """
    axis = resolve_axis(volume, options.axis)
    roi = parse_roi(request, volume)
    boxes = list(_list(request, "boxes"))
    positive, negative = _list(request, "foreground"), _list(request, "background")
    if not options.propagate and roi is not None and not positive:
        boxes.append(_box_on_slice(roi, request.get("slice"), axis))
    if not options.propagate:
        roi = None
    path = painted or uploaded_label_path(request)
    mask = saved if path is None else read_mask(path, volume) > 0
    masks = _painted(mask, [_integer(t, "mask_slices") for t in _list(request, "mask_slices")], axis)
    return make_prompts(
        volume, positive=_points(positive, request, axis), negative=_points(negative, request, axis), boxes=boxes,
        roi=roi, masks=masks, absent=[_integer(t, "absent") for t in _list(request, "absent")], axis=axis,
    )  # fmt: skip


def has_no_prompt(request: dict) -> bool:
    """Return whether a request holds no prompt at all: its client has deleted all of them, so the structure is to be empty.

    Raises:
        PromptError: A field is no list.
    """
    names = ("foreground", "background", "boxes", "absent", "mask_slices")
    return not any(_list(request, n) for n in names) and not any(_list(request, "roi")) and uploaded_label_path(request) is None


def parse_bool(value) -> bool:
    """Return whether a tick box is set, as clients send it: true, 1, "true", "on", ..."""
    return str(value).strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _list(request: dict, name: str) -> list:
    v = request.get(name)
    if v is None or v == "":
        return []
    if isinstance(v, str):
        with suppress(json.JSONDecodeError):  # Other text stays text, which is refused below.
            v = json.loads(v)
    if not isinstance(v, (list, tuple)):
        raise PromptError(f"The field {name!r} is not a list: {v!r}.")
    return list(v)


def _points(points: list, request: dict, axis: int) -> list:
    """Return clicks [i, j, k]; a 2D client may leave out the index of the slice that it displays."""
    out = []
    for p in points:
        if isinstance(p, (list, tuple)) and len(p) == 2 and request.get("slice") is not None:
            p = list(p)
            p.insert(axis, _integer(request["slice"], "slice"))
        out.append(p)
    return out


def _integer(value, name: str) -> int:
    try:
        return int(round(float(value)))
    except (TypeError, ValueError, OverflowError) as e:
        raise PromptError(f"The field {name!r} must hold whole numbers; got {value!r}.") from e


def parse_roi(request: dict, volume: Volume) -> tuple[list[float], list[float]] | None:
    """Return the low and high corner (i, j, k) of a request's region of interest, clipped to the volume; None without one (or only zeros).

    Raises:
        PromptError: It is not six numbers, or lies outside the volume.
    """
    numbers = _list(request, "roi")
    if not numbers:
        return None
    try:
        pairs = np.asarray(numbers, float)
    except (TypeError, ValueError, OverflowError) as e:
        raise PromptError(f"roi must be six numbers i0,i1,j0,j1,k0,k1; got {numbers!r}.") from e
    if pairs.shape != (6,) or not np.isfinite(pairs).all():
        raise PromptError(f"roi must be six numbers i0,i1,j0,j1,k0,k1; got {numbers!r}.")
    if not pairs.any():
        return None
    pairs = pairs.reshape(3, 2)
    low, high = pairs.min(1), pairs.max(1)
    top = np.array(volume.shape) - 1
    if (high < 0).any() or (low > top).any():
        raise PromptError("The region of interest lies outside the volume.")
    return np.maximum(low, 0).tolist(), np.minimum(high, top).tolist()


def _box_on_slice(roi, displayed_slice, axis: int):
    """Return a region as a box on the slice that a 2D client displays, or on its middle slice when that is not within it."""
    low, high = list(roi[0]), list(roi[1])
    t = None if displayed_slice is None else _integer(displayed_slice, "slice")
    if t is None or not low[axis] <= t <= high[axis]:
        t = round((low[axis] + high[axis]) / 2)
    low[axis] = high[axis] = t
    return low, high


def uploaded_label_path(request: dict) -> str | None:
    """Return the path of an uploaded label map, or None. MONAI Label stores uploads in the temporary folder; "label" may be a name, too."""
    label = request.get("label")
    temporary = Path(tempfile.gettempdir()).resolve()
    if not isinstance(label, str) or not Path(label).is_absolute():  # A name is no path, wherever the server runs.
        return None
    return label if temporary in Path(label).resolve().parents else None


def _painted(mask: np.ndarray | None, wanted: list[int], axis: int) -> dict[int, np.ndarray]:
    """Return the wanted slices of a mask bool (I, J, K), empty or not; by default those that are not empty."""
    if mask is None:
        if wanted:
            raise PromptError("The field 'mask_slices' names slices of a label, but there is none: upload one, or save one for this image.")
        return {}
    count = mask.shape[axis]
    for t in wanted:
        if not 0 <= t < count:
            raise PromptError(f"There is no slice {t}; slices go from 0 to {count - 1}.")
    filled = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
    return {int(t): mask.take(t, axis) for t in wanted or filled}


def _z_range(value) -> tuple[int, int] | None:
    """Return first and last slice from "low,high" or a pair of slice indices."""
    if value is None:
        return None
    parts = value.replace(":", ",").split(",") if isinstance(value, str) else value
    try:
        low, high = (int(round(float(v))) for v in parts)
    except (TypeError, ValueError, OverflowError) as e:
        raise OptionError(f"z_range must be two slice indices 'low,high'; got {value!r}.") from e
    return min(low, high), max(low, high)


def _number(name: str, what: str, value) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise OptionError(f"{name} must be {what}; got {value!r}.")
    return number
