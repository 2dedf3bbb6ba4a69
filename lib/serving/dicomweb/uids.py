"""Unique identifiers for DICOM that is made of images without any: an image gets the same ones on every server and after every start."""

import hashlib
import os
import re
import uuid

from lib.imaging.study_images import StudyImage

_UID = re.compile(r"[0-2](\.(0|[1-9]\d*))+", re.ASCII)
_MAX_UID_LENGTH = 64
_SAMPLE_BYTES, _SAMPLES = 1 << 16, 16


def is_uid(text: str) -> bool:
    """Return whether a text is a valid DICOM UID.

    >>> is_uid("1.2.840.10008.1.2"), is_uid("1.2.03"), is_uid("../1.2")
    (True, False, False)
    """
    return len(text) <= _MAX_UID_LENGTH and _UID.fullmatch(text) is not None


def content_digest(image_id: str, image: StudyImage) -> bytes:
    """Return a digest (16 bytes) of an image's id and content; it does not change with the place, the name or the time of files.

    Reading and unpacking all files of a folder would take minutes, so the digest covers the sizes of an image's files and sixteen samples
    of 64 KiB of each, among them the end, where a gzip file has the checksum of all voxels. DICOM frames have identifiers already. The id
    is in it because copies of an image are images of their own, with labels of their own.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.blake2b(image_id.encode(errors="replace"), digest_size=16)
    if image.stack is not None:
        digest.update(repr([(f.sop_instance_uid, f.number) for f in image.stack.frames]).encode())
        return digest.digest()
    for path in image.files:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(b"%d;" % size)
            for n in range(_SAMPLES):
                file.seek(max(size - _SAMPLE_BYTES, 0) * n // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def derived_uid(digest: bytes, *names) -> str:
    """Return the UID of something that belongs to the image with this digest, for example of its study or of a slice."""
    text = "/".join(map(str, names)).encode()
    number = hashlib.blake2b(text, key=digest, digest_size=16).digest()
    return f"2.25.{uuid.UUID(bytes=number, version=5).int}"  # The root 2.25 takes UUIDs (DICOM PS3.5 B.2).
