"""Checks of request fields, made before MONAI Label uses them as names of files or as JSON."""

import json
import os
import re
from pathlib import PureWindowsPath

from fastapi import HTTPException, UploadFile

TAG = re.compile(r"[A-Za-z0-9_\-]{1,64}")
MAX_NAME_LENGTH = 200


def is_name(text: str) -> bool:
    """Return whether a text can be the name of something in a folder, and cannot lead out of that folder."""
    return 0 < len(text) <= MAX_NAME_LENGTH and text.isprintable() and not set(text) & set("/\\") and text.strip(". ") != ""


def check_image_id(image: str, datastore) -> str:
    """Return the id of an image if it may be looked up in the datastore.

    Raises:
        HTTPException: 404 if it is no name, or the path of a file on the server, which MONAI Label accepts as an image, too.
    """
    if not is_name(image) or (os.path.exists(image) and image not in datastore.list_images()):
        raise HTTPException(404, "There is no such image in the datastore.")
    return image


def parse_json_object(text: str, name: str) -> dict:
    """Return the JSON object that the text of a form field holds; {} if the text is empty.

    Raises:
        HTTPException: 422 if the text is not a JSON object; the message names the field.
    """
    try:
        value = json.loads(text) if text and text.strip() else {}
    except (ValueError, RecursionError) as e:
        raise HTTPException(422, f"The field {name} is not JSON.") from e
    if not isinstance(value, dict):
        raise HTTPException(422, f"The field {name} must be a JSON object.")
    return check_serializable(value, name)


def check_serializable(value: dict, name: str) -> dict:
    """Return `value` if it can be written as JSON again, since what the server stores it will send later.

    Python's parser accepts NaN and lone surrogates, which JSON in UTF-8 does not have.

    Raises:
        HTTPException: 422 if it holds such a number or character.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as e:
        raise HTTPException(422, f"The field {name} holds a number or a character that JSON does not have.") from e
    return value


def check_tag(text: str) -> str:
    """Return a label's tag if it can be the name of a folder, else raise HTTPException 422."""
    if not TAG.fullmatch(text):
        raise HTTPException(422, "A tag is a short word of letters, digits, - and _; for example final.")
    return text


def clean_file_name(upload: UploadFile | None) -> None:
    """Remove the folder from the name of an uploaded file, because Slicer sends the whole path.

    Raises:
        HTTPException: 422 if what remains cannot be a file's name.
    """
    if upload is None or not upload.filename:
        return
    upload.filename = PureWindowsPath(upload.filename).name  # Splits at both / and \\.
    if not is_name(upload.filename):
        raise HTTPException(422, "The uploaded file has a name that cannot be used: send it as, for example, image.nii.gz.")
