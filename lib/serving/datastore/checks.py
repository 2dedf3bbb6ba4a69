"""Checks of the names and files that a datastore is given."""

from pathlib import Path

from lib.common.errors import UserError, VolumeError
from lib.imaging.readers import ITK_ENDINGS, NIFTI_ENDINGS, read_volume
from lib.imaging.volume import Volume
from lib.serving.web.request_checks import is_name


def checked_file_name(id_or_tag) -> str:
    """Return an id or a tag as text, or raise UserError if it cannot name a file in the datastore's folder."""
    text = str(getattr(id_or_tag, "value", id_or_tag))  # Tags may be members of MONAI Label's DefaultLabelTag.
    if not is_name(text):
        raise UserError(f"{text[:80]!r} cannot be an id or a tag: use a name without / and \\.")
    return text


def read_upload(path: str | Path) -> Volume | None:
    """Return the volume in an uploaded file, or None if the file holds something else than a volume.

    Raises:
        UserError: The file is damaged or incomplete.
    """
    if not str(path).lower().endswith((*NIFTI_ENDINGS, *ITK_ENDINGS)):
        return None
    try:
        return read_volume(path)
    except VolumeError as e:
        if not e.__cause__:  # The file was read without an error but is not one volume; it may have four dimensions.
            return None
        raise UserError("The file is damaged or incomplete and was not saved; what was there before stays.") from e
