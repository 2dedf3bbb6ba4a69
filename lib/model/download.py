"""Fetches published checkpoints: resumable, with a progress bar, checked before they are used."""

import logging
import os
from pathlib import Path

import requests
from tqdm import tqdm

from lib.common.errors import CheckpointError, DownloadError
from lib.model.checkpoints import Checkpoint, sha256, verify

logger = logging.getLogger(__name__)


def download(checkpoint: Checkpoint, *, timeout: float = 20.0) -> Path:
    """The local path of `checkpoint`, fetched if it is not there yet.

    An interrupted download is resumed from its `.part` file; the final name appears only after the check.

    Raises:
        DownloadError: no network, a server error, or a file that is not the published one.
    """
    if checkpoint.url is None:
        return checkpoint.path
    try:
        verify(checkpoint)
        return checkpoint.path
    except CheckpointError:
        pass  # missing or damaged
    part = checkpoint.path.with_suffix(checkpoint.path.suffix + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(checkpoint, part, timeout)
    except requests.RequestException as e:
        raise DownloadError(
            f"Could not fetch {checkpoint.url}: {type(e).__name__}. Without network access, copy the file to "
            f"{checkpoint.path} by hand; the checkpoint 'embedded' needs no download. Run the command again to resume."
        ) from e
    if checkpoint.bytes not in (None, part.stat().st_size) or checkpoint.sha256 not in (None, sha256(part)):
        part.unlink()
        raise DownloadError(f"What {checkpoint.url} sent is not the published file (SHA-256 differs); it was deleted.")
    if checkpoint.sha256 is None:
        logger.warning("No published SHA-256 is known for %s; it has %s.", checkpoint.name, sha256(part))
    os.replace(part, checkpoint.path)
    return checkpoint.path


def _fetch(checkpoint: Checkpoint, part: Path, timeout: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    if checkpoint.bytes is not None and have >= checkpoint.bytes:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(checkpoint.url, headers=headers, stream=True, timeout=timeout) as answer:
        if have and answer.status_code == 416:  # complete already
            return
        answer.raise_for_status()
        if answer.status_code != 206:
            have = 0  # the server does not resume
        total = have + int(answer.headers.get("Content-Length", 0))
        with open(part, "ab" if have else "wb") as f, tqdm(
            total=total or None, initial=have, unit="B", unit_scale=True, desc=checkpoint.path.name
        ) as bar:
            for block in answer.iter_content(1 << 16):
                f.write(block)
                bar.update(len(block))
    if total and part.stat().st_size < total:
        raise requests.ConnectionError("the connection ended early")
