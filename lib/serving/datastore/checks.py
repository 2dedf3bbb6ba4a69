"""Checks of the names and files that a datastore is given."""

from pathlib import Path

from lib.common.errors import UserError, VolumeError
from lib.imaging.readers import check_fits, read_grid, read_volume
from lib.imaging.volume import Grid
from lib.serving.web.request_checks import is_name

IMAGE_UPLOAD_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".dcm")  # Formats whose images are single files.


def checked_file_name(id_or_tag) -> str:
    """Return an id or a tag as text, or raise UserError if it cannot name a file in the datastore's folder."""
    text = str(getattr(id_or_tag, "value", id_or_tag))  # Tags may be members of MONAI Label's DefaultLabelTag.
    if not is_name(text):
        raise UserError(f"{text[:80]!r} cannot be an id or a tag: use a name without / and \\.")
    return text


def check_image_file(path: str | Path, name: str) -> None:
    """Raise VolumeError with the reader's sentence if an uploaded file or folder, which it calls `name`, cannot be read as a volume.

    An image with several channels passes, because the option `channel` of a server may choose among them.
    """
    try:
        read_volume(path)
    except VolumeError as e:
        try:
            read_volume(path, channel=0)
        except VolumeError:
            raise VolumeError(str(e).replace(Path(path).name, name)) from e


def misfit(label: Path, image: Grid) -> str:
    """Return why a label map does not fit an image by their grids, or "". Damaged files have no grid, so they are not judged here."""
    try:
        grid = read_grid(label)
    except VolumeError:
        return ""
    try:
        check_fits(grid, image, label.name)
    except VolumeError as e:
        return str(e)
    return ""
