"""Checks of the names and files that a datastore is given."""

from pathlib import Path

from lib.common.errors import UserError, VolumeError
from lib.imaging.readers import read_volume
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
