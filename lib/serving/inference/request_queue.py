"""Who may use the model next: clients take turns, each in the order of its own requests."""

import asyncio
import threading
from collections import OrderedDict, deque
from contextlib import asynccontextmanager
from contextvars import ContextVar

# Set while a request runs; the event is set when its client has gone.
GONE: ContextVar[threading.Event | None] = ContextVar("gone", default=None)


class Cancelled(Exception):
    """The client of the running request has gone."""


class QueueFull(Exception):
    """No place in the queue: of this client (`own`), or of all."""

    def __init__(self, message: str, own: bool):
        super().__init__(message)
        self.own = own


def stop_if_gone() -> None:
    """To be called now and then during long work.

    Raises:
        Cancelled: nobody waits for the answer.
    """
    gone = GONE.get()
    if gone is not None and gone.is_set():
        raise Cancelled("The client has gone.")


class RequestQueue:
    """A queue for each client; the queues are served in turn, so nobody waits for all clicks of another.

    Args:
        at_once: requests that run at the same time. places: waiting requests of all clients. own: of one client.
    """

    def __init__(self, at_once: int = 1, places: int = 64, own: int = 8):
        self.at_once, self.places, self.own = at_once, places, own
        self.running = 0
        self._queues: OrderedDict[str, deque[asyncio.Future]] = OrderedDict()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def turn(self, client: str):
        """Waits until this client's turn has come; a cancelled wait gives up its place.

        Raises:
            Crowded: the queue is full.
        """
        await self._enter(client)
        try:
            yield
        finally:
            self._leave(client)

    async def _enter(self, client: str) -> None:
        if self.running < self.at_once:
            self.running += 1
            return
        if len(self._queues.get(client, ())) >= self.own:
            raise QueueFull(f"{self.own} requests of yours are waiting already: wait for their answers.", own=True)
        if self.waiting >= self.places:
            raise QueueFull(f"The server is busy: {self.places} requests are waiting. Try again in a while.", own=False)
        place = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # the turn came in this very moment
                self._leave(client)
            else:
                self._forget(client, place)
            raise

    def _leave(self, last: str) -> None:
        """Hands the turn to the client that has waited longest for one; `last` has just had one."""
        if last in self._queues:
            self._queues.move_to_end(last)
        while self._queues:
            client, queue = self._queues.popitem(last=False)
            place = queue.popleft()
            if queue:
                self._queues[client] = queue  # behind the others
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1

    def _forget(self, client: str, place: asyncio.Future) -> None:
        queue = self._queues.get(client)
        if queue and place in queue:
            queue.remove(place)
            if not queue:
                del self._queues[client]
