"""Unique identifiers for DICOM that is made of images without any: an image gets the same ones on every server and after every start."""

import hashlib
import re
import uuid

_UID = re.compile(r"[0-2](\.(0|[1-9]\d*))+", re.ASCII)
_MAX_UID_LENGTH = 64


def is_uid(text: str) -> bool:
    """Return whether a text is a valid DICOM UID.

    >>> is_uid("1.2.840.10008.1.2"), is_uid("1.2.03"), is_uid("../1.2")
    (True, False, False)
    """
    return len(text) <= _MAX_UID_LENGTH and _UID.fullmatch(text) is not None


def derived_uid(image_id: str, content: str, *names) -> str:
    """Return the UID of something that belongs to an image, for example of its study or of a slice.

    Args:
        image_id: Id of the image. Copies of an image have ids and labels of their own, so they need UIDs of their own.
        content: Digest of its content.
        names: What is meant.
    """
    number = hashlib.blake2b(repr((image_id, content, *names)).encode(errors="replace"), digest_size=16).digest()
    return f"2.25.{uuid.UUID(bytes=number, version=5).int}"  # The root 2.25 takes UUIDs (DICOM PS3.5 B.2).
