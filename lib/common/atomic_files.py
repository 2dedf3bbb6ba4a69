"""Write files atomically: after a crash or power failure, a file holds either its old or its new content, never a mixture."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file that replaces `path` once it is on the disk; create the parent folders if needed.

    Raises:
        OSError: The file cannot be written; `path` then keeps its old content.
    """
    with replaced_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced_file(path: Path, ending: str = ".tmp") -> Iterator[Path]:
    """Yield a path for a temporary file beside `path`, which it replaces when the block ends; if the block fails, it is deleted.

    Args:
        ending: Ending of the temporary file, for writers that choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}{ending}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
