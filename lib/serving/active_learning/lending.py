"""Who has which volume, and which volumes annotators do not want: loans, skipped volumes, and volumes that are marked as bad.

An untouched volume is lent to one client for some minutes, so that no two annotators begin the same one. A client has one loan at a time.
All is kept in one small file under a lock, so that several server processes on one folder agree and a killed server loses nothing.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import filelock

from lib.common.atomic_files import write_text
from lib.common.errors import UserError

LEND_MINUTES = 15.0
LOCK_TIMEOUT_S = 20
MAX_REASON_LENGTH = 300
FRESH_SHARE = 0.9  # A loan that still has this share of its time is not written anew.
ENTRIES = ("loans", "skipped", "rejected")

logger = logging.getLogger(__name__)


class Lending:
    """Loans and refusals of volumes.

    The file holds {"loans": {image: {client, until, digest}}, "skipped": {image: {client: {reason, time, digest}}}, "rejected": {image:
    {client, reason, time, digest}}}; times are seconds since 1970, and the digest is that of the image's content.

    Args:
        folder: Where the file is kept. If it cannot be written to, the state lives as long as the server.
        minutes: How long a loan lasts after the client was last heard of.
        clock: Returns the present time in seconds.
        digest_of: Returns the digest of the present content of an image by its id. What belongs to another content does not count.
    """

    def __init__(
        self, folder: str | Path, minutes: float = LEND_MINUTES, clock: Callable[[], float] = time.time,
        digest_of: Callable[[str], str] = lambda image: "",
    ):  # fmt: skip
        self._file = Path(folder, "volumes.json")
        self._loan_s, self._clock, self._digest_of = 60 * minutes, clock, digest_of
        self._lock = threading.RLock()
        self._in_memory: dict | None = None  # The state, once the file could not be written.

    def state(self) -> dict[str, dict]:
        """Return the content of the file without loans that have ended and without what belongs to other contents of images."""
        state, now_s = self._in_memory or _read(self._file), self._clock()

        def current(entries: dict[str, dict], image: str = "") -> dict[str, dict]:
            """Return the entries by image, or those by client of one image, that belong to the present content."""
            return {key: entry for key, entry in entries.items() if entry.get("digest") == self._digest_of(image or key)}

        running = {image: loan for image, loan in state["loans"].items() if loan["until"] > now_s}
        skipped = {image: kept for image, entries in state["skipped"].items() if (kept := current(entries, image))}
        return {"loans": current(running), "skipped": skipped, "rejected": current(state["rejected"])}

    def lend(self, image: str, client: str) -> bool:
        """Lend a volume to a client, or make its loan longer; return False if another client has the volume. Other loans of it end."""
        if self._has_fresh_loan(image, client):
            return True
        with self._changing() as state:
            if state["loans"].get(image, {}).get("client", client) != client:
                return False
            state["loans"] = {i: loan for i, loan in state["loans"].items() if loan["client"] != client}
            state["loans"][image] = {"client": client, "until": self._clock() + self._loan_s, "digest": self._digest_of(image)}
        return True

    def give_back(self, image: str, client: str) -> None:
        """End a client's loan of a volume, if it has one."""
        if self.state()["loans"].get(image, {}).get("client") == client:
            with self._changing() as state:
                state["loans"].pop(image, None)

    def is_recent(self, time_s: float) -> bool:
        """Return whether a time is not longer ago than a loan lasts."""
        return self._clock() - time_s <= self._loan_s

    def choose(self, image: str, client: str) -> None:
        """Lend a volume to a client that asks for it, although it may have skipped it before.

        Raises:
            UserError: It is marked as bad, or lent to another client.
        """
        state = self.state()
        if image in state["rejected"]:
            raise UserError(f"{image} is marked as bad ({state['rejected'][image]['reason'] or 'no reason given'}): take that back first.")
        if not self.lend(image, client):
            minutes = max(1, round((state["loans"].get(image, {}).get("until", 0) - self._clock()) / 60))
            raise UserError(f"{image} is lent to another annotator for {minutes} more minutes: choose another volume, or wait.")
        if client in state["skipped"].get(image, {}):
            with self._changing() as changed:
                _unskip(changed, image, client)

    def skip(self, image: str, client: str, reason: str = "") -> None:
        """Never propose a volume to this client again, until it is chosen or taken back."""
        with self._changing() as state:
            state["skipped"].setdefault(image, {})[client] = self._entry(image, reason)
            _end_loan(state, image, client)

    def reject(self, image: str, client: str, reason: str = "") -> None:
        """Mark a volume as bad: it is proposed to nobody."""
        with self._changing() as state:
            state["rejected"][image] = {"client": client, **self._entry(image, reason)}
            state["loans"].pop(image, None)

    def take_back(self, image: str, client: str) -> None:
        """Undo what was done to a volume: the mark as bad, whoever made it, and this client's skip and loan."""
        with self._changing() as state:
            state["rejected"].pop(image, None)
            _unskip(state, image, client)
            _end_loan(state, image, client)

    def _entry(self, image: str, reason: str) -> dict:
        """Return what is kept of a refusal: its reason as one line of limited length, the time, and the digest of the image's content."""
        return {"reason": " ".join(reason.split())[:MAX_REASON_LENGTH], "time": self._clock(), "digest": self._digest_of(image)}

    def _has_fresh_loan(self, image: str, client: str) -> bool:
        """Return whether a loan is so new that the file need not be written again."""
        loan = self.state()["loans"].get(image)
        return loan is not None and loan["client"] == client and loan["until"] - self._clock() > FRESH_SHARE * self._loan_s

    @contextmanager
    def _changing(self) -> Iterator[dict]:
        """Yield the newest state, which is written when the context ends without an exception."""
        with self._lock, ExitStack() as stack:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(filelock.FileLock(self._file.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S))
            except filelock.Timeout:
                raise
            except OSError as e:
                logger.warning("Cannot lock %s: %s.", self._file, e)
            state = self.state()
            yield state
            try:
                write_text(self._file, json.dumps(state))
                self._in_memory = None
            except OSError as e:
                logger.warning("Cannot write to %s: %s. Loans of volumes are lost when the server ends.", self._file, e)
                self._in_memory = state


def _unskip(state: dict, image: str, client: str) -> None:
    """Remove a client's skip of a volume from a state."""
    clients = state["skipped"].get(image, {})
    clients.pop(client, None)
    if not clients:
        state["skipped"].pop(image, None)


def _end_loan(state: dict, image: str, client: str) -> None:
    """Remove a client's loan of a volume from a state."""
    if state["loans"].get(image, {}).get("client") == client:
        del state["loans"][image]


def _read(file: Path) -> dict[str, dict]:
    """Return the state in a file; a missing or damaged one counts as empty."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        content = {}
    entries = content if isinstance(content, dict) else {}
    return {name: dict(entries[name]) if isinstance(entries.get(name), dict) else {} for name in ENTRIES}
