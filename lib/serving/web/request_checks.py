"""Fields of requests, checked before MONAI Label uses them as names of files, or as JSON."""

import json
import os
import re
from pathlib import PureWindowsPath

from fastapi import HTTPException, UploadFile

TAG = re.compile(r"[A-Za-z0-9_\-]{1,64}")
LONGEST = 200


def is_name(text: str) -> bool:
    """Whether `text` names something in a folder, and cannot lead out of it."""
    return 0 < len(text) <= LONGEST and text.isprintable() and not set(text) & set("/\\") and text.strip(". ") != ""


def known_image(image: str, datastore) -> str:
    """An id that may be looked up in the datastore. MONAI Label takes a path of the server for an image as well: refused.

    Raises:
        HTTPException: 404.
    """
    if not is_name(image) or (os.path.exists(image) and image not in datastore.list_images()):
        raise HTTPException(404, "There is no such image in the datastore.")
    return image


def json_object(text: str, name: str) -> dict:
    """The JSON object of a form field.

    Raises:
        HTTPException: 422.
    """
    try:
        value = json.loads(text) if text and text.strip() else {}
    except (ValueError, RecursionError) as e:
        raise HTTPException(422, f"The field {name} is not JSON.") from e
    if not isinstance(value, dict):
        raise HTTPException(422, f"The field {name} must be a JSON object.")
    return can_be_sent(value, name)


def can_be_sent(value: dict, name: str) -> dict:
    """Itself. What is kept is sent again later: no NaN, and no half characters (lone surrogates), which Python's parser lets pass.

    Raises:
        HTTPException: 422.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as e:
        raise HTTPException(422, f"The field {name} holds a number or a character that JSON does not have.") from e
    return value


def tag(text: str) -> str:
    """A label's tag, which becomes the name of a folder.

    Raises:
        HTTPException: 422.
    """
    if not TAG.fullmatch(text):
        raise HTTPException(422, "A tag is a short word of letters, digits, - and _; for example final.")
    return text


def file_name(upload: UploadFile | None) -> None:
    """Takes the folder off the name of an uploaded file, whose ending MONAI Label keeps: Slicer sends the whole path.

    Raises:
        HTTPException: 422.
    """
    if upload is None or not upload.filename:
        return
    upload.filename = PureWindowsPath(upload.filename).name  # knows / and \\
    if not is_name(upload.filename):
        raise HTTPException(422, "The uploaded file has a name that cannot be used: send it as, for example, image.nii.gz.")
