"""Where features of slices go that do not fit on the device: to the host's memory and, if a folder is configured, to files."""

import hashlib
import logging
import os
import threading
import uuid
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

logger = logging.getLogger(__name__)

HOST_BYTES = 8 << 30
FOLDER_BYTES = 50 << 30


class FeatureOverflow:
    """Tensors by key. What was used longest ago goes to the folder, or is forgotten.

    Files are named by a digest of their key, which holds the content of the volume, so they are found again after a restart, under any
    path of the image. They hold features of patients' slices; therefore nothing is written unless a folder is configured.

    Args:
        host_bytes: Bytes of the host's memory to use. Features of a network on the CPU are in that memory already, so 0 is right for them.
        folder: Where files go, or None for no files.
        folder_bytes: Bytes of files to keep.
    """

    def __init__(self, host_bytes: int = HOST_BYTES, folder: str | Path | None = None, folder_bytes: int = FOLDER_BYTES):
        self._host_bytes, self._folder_bytes = host_bytes, folder_bytes
        self._folder = Path(folder) if folder else None
        self._kept: OrderedDict[tuple, tuple[torch.Tensor, ...]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)

    def put(self, key: tuple, tensors: tuple[torch.Tensor, ...]) -> None:
        """Keep tensors, if there is room for them."""
        if not (self._host_bytes or self._folder):
            return
        tensors = tuple(t.cpu() for t in tensors)
        size = sum(t.nbytes for t in tensors)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = tensors
                self._bytes += size
            while self._kept and self._bytes > self._host_bytes:
                old, values = self._kept.popitem(last=False)
                self._bytes -= sum(t.nbytes for t in values)
                if self._folder:
                    self._write(self._file(old), values)

    def get(self, key: tuple) -> tuple[torch.Tensor, ...] | None:
        """Return the tensors of `key` on the CPU, or None."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            return self._read(self._file(key)) if self._folder else None

    def _file(self, key: tuple) -> Path:
        return self._folder / f"{hashlib.blake2b(repr(key).encode(), digest_size=20).hexdigest()}.safetensors"

    def _write(self, path: Path, tensors) -> None:
        if path.exists():
            return
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            save_file({str(n): t.contiguous() for n, t in enumerate(tensors)}, temporary)
            temporary.replace(path)
            self._make_room()
        except OSError as e:  # If the disk is full, the slices are encoded again, but the request is answered.
            temporary.unlink(missing_ok=True)
            logger.warning("Could not keep features in %s: %s", self._folder, e)

    def _read(self, path: Path) -> tuple[torch.Tensor, ...] | None:
        try:
            content = load_file(path)
            os.utime(path)
        except FileNotFoundError:
            return None
        except Exception as e:  # The slice of a damaged file is encoded again.
            logger.warning("Removed %s: %s", path.name, e)
            path.unlink(missing_ok=True)
            return None
        return tuple(content[str(n)] for n in range(len(content)))

    def _make_room(self) -> None:
        files = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in self._folder.glob("*.safetensors"))
        total = sum(size for _, size, _ in files)
        for _, size, file in files:
            if total <= self._folder_bytes:
                return
            file.unlink(missing_ok=True)
            total -= size
