"""Digests of the content of image files: an image is known by its content, and its id is only a name."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

MAX_READ_BYTES = 16 * 2**20  # Of larger images, evenly spread blocks of this total size are read.
MIN_FILE_BYTES = 64 * 2**10  # Read of each file at least.
_BLOCKS = 32  # For each file that is not read completely.


def content_digest(files: Sequence[Path], volume: str = "") -> str:
    """Return a digest of the content of an image, 32 hexadecimal digits.

    Files of up to 16 MiB in total are read completely. Of larger ones, the size and 32 evenly spread blocks count, among them the first
    and the last, which in a compressed file holds a checksum of everything before it.

    Args:
        files: The files that the image consists of, in the order that they have in it.
        volume: Text that tells the image from others in the same files.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.blake2b(volume.encode(), digest_size=16)
    share = max(MIN_FILE_BYTES, MAX_READ_BYTES // max(1, len(files)))
    for path in files:
        size = os.path.getsize(path)
        digest.update(f"{size};".encode())
        with open(path, "rb") as file:
            if size <= share:
                digest.update(file.read())
                continue
            length = share // _BLOCKS
            for n in range(_BLOCKS):
                file.seek((size - length) * n // (_BLOCKS - 1))
                digest.update(file.read(length))
    return digest.hexdigest()


def file_stamp(files: Iterable[Path]) -> str:
    """Return a text that changes when one of the files is changed or exchanged: a digest of their sizes, times and inodes.

    Raises:
        OSError: A file is missing.
    """
    stats = [(s.st_size, s.st_mtime_ns, s.st_ino) for s in map(os.stat, files)]
    return hashlib.blake2b(repr(stats).encode(), digest_size=12).hexdigest()
