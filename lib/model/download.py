"""Download published checkpoints: resumable, with a progress bar, checked before they are used."""

import logging
import os
from pathlib import Path

import requests
from tqdm import tqdm

from lib.common.errors import CheckpointError, DownloadError
from lib.model.checkpoints import Checkpoint, sha256, verify

logger = logging.getLogger(__name__)


def download(checkpoint: Checkpoint, *, timeout: float = 20.0) -> Path:
    """Download a checkpoint unless its file is there already (or has no address), and return its local path.

    An interrupted download is resumed from its `.part` file; the final name appears only after the check.

    Args:
        timeout: Seconds that the server may send nothing.

    Raises:
        DownloadError: There is no network, the server failed, or the file is not the published one.
    """
    if checkpoint.url is None:
        return checkpoint.path
    try:
        verify(checkpoint)
        return checkpoint.path
    except CheckpointError:
        pass  # It is missing or damaged.
    partial_path = checkpoint.path.with_suffix(checkpoint.path.suffix + ".part")
    partial_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(checkpoint, partial_path, timeout)
    except requests.RequestException as e:
        raise DownloadError(
            f"Could not fetch {checkpoint.url}: {type(e).__name__}. Without network access, copy the file to "
            f"{checkpoint.path} by hand; the checkpoint 'embedded' needs no download. Run the command again to resume."
        ) from e
    if checkpoint.bytes not in (None, partial_path.stat().st_size) or checkpoint.sha256 not in (None, sha256(partial_path)):
        partial_path.unlink()
        raise DownloadError(f"What {checkpoint.url} sent is not the published file (SHA-256 differs); it was deleted.")
    if checkpoint.sha256 is None:
        logger.warning("No published SHA-256 is known for %s; it has %s.", checkpoint.name, sha256(partial_path))
    os.replace(partial_path, checkpoint.path)
    return checkpoint.path


def _fetch(checkpoint: Checkpoint, partial_path: Path, timeout: float) -> None:
    received = partial_path.stat().st_size if partial_path.exists() else 0
    if checkpoint.bytes is not None and received >= checkpoint.bytes:
        return
    headers = {"Range": f"bytes={received}-"} if received else {}
    with requests.get(checkpoint.url, headers=headers, stream=True, timeout=timeout) as answer:
        if received and answer.status_code == 416:  # The file is complete already.
            return
        answer.raise_for_status()
        if answer.status_code != 206:
            received = 0  # The server does not resume.
        total = received + int(answer.headers.get("Content-Length", 0))
        with open(partial_path, "ab" if received else "wb") as f, tqdm(
            total=total or None, initial=received, unit="B", unit_scale=True, desc=checkpoint.path.name
        ) as bar:
            for block in answer.iter_content(1 << 16):
                f.write(block)
                bar.update(len(block))
    if total and partial_path.stat().st_size < total:
        raise requests.ConnectionError("the connection ended early")
