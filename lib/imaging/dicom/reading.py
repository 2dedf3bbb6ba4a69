"""Read one volume of a DICOM file or folder."""

import re
from collections.abc import Sequence
from pathlib import Path

from lib.common.errors import VolumeError
from lib.imaging.dicom.frames import DICOM_ERRORS
from lib.imaging.dicom.pixels import read_values
from lib.imaging.dicom.stacks import Stack, find_stacks
from lib.imaging.volume import Grid, Volume, make_volume

__all__ = ["DICOM_ERRORS", "choose_stack", "read_dicom", "read_dicom_grid", "read_stack"]


def read_dicom(path: Path, channel: int | None = None, spacing_mm: Sequence[float] | None = None) -> Volume:
    """Return the volume of a DICOM file or folder.

    Args:
        path: File or folder, with "#n" behind the name for the n-th of several volumes, from 1.
        channel: Index of the volume from 0, another way to choose it.
        spacing_mm: Distances (3,) of the voxels along i, j and k, for files that do not state them.

    Raises:
        VolumeError: There is no volume, the choice between several is open, or it is not clear where the voxels lie.
        DICOM_ERRORS: A file is damaged.
    """
    stack = choose_stack(path, channel, spacing_mm)
    return read_stack(stack, path.name)


def read_stack(stack: Stack, name: str) -> Volume:
    """Return the volume of a stack; the errors are those of `read_dicom`."""
    _check_usable(stack, name)
    return make_volume(read_values(stack, name), stack.affine, name=name, source_frames=stack.frames, warnings=stack.warnings)


def read_dicom_grid(path: Path) -> Grid:
    """Return the voxel grid of a DICOM file or folder; the errors are those of `read_dicom`."""
    stack = choose_stack(path)
    return Grid(stack.shape, stack.affine)


def choose_stack(path: Path, channel: int | None = None, spacing_mm: Sequence[float] | None = None) -> Stack:
    """Return the stack that a path with "#n", or a channel, names; a single one needs no name. See `read_dicom`."""
    number, base = None, path
    match = re.fullmatch(r"(.+)#(\d+)", path.name)
    if match and not path.exists():
        base, number = path.with_name(match[1]), int(match[2]) - 1
    elif channel is not None:
        number = channel
    stacks = find_stacks(base, spacing_mm)
    if not stacks:
        if base.is_dir():
            raise VolumeError(f"The folder {base.name} holds no DICOM series with images.")
        raise ValueError(f"{base.name} is no DICOM image")
    if number is None and len(stacks) == 1:
        number = 0
    if number is None or not 0 <= number < len(stacks):
        choices = "; ".join(f"{base.name}#{n} ({s.description}{', unusable' if s.problem else ''})" for n, s in enumerate(stacks, 1))
        raise VolumeError(f"{base.name} holds {len(stacks)} volumes: choose one of {choices}.")
    _check_usable(stacks[number], path.name)
    return stacks[number]


def _check_usable(stack: Stack, name: str) -> None:
    """Raise VolumeError if a stack has a problem."""
    if stack.problem:
        raise VolumeError(stack.problem if stack.problem.startswith(name) else f"{name} cannot be used: {stack.problem}")
