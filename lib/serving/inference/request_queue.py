"""The queue for the model: clients take turns, and each client's requests keep their order."""

import asyncio
import threading
from collections import OrderedDict, deque
from contextlib import asynccontextmanager
from contextvars import ContextVar

# The event of the request that is running in this context. The route sets it when the client has disconnected.
CLIENT_GONE: ContextVar[threading.Event | None] = ContextVar("gone", default=None)


class Cancelled(Exception):
    """The client of the running request has disconnected."""


class QueueFull(Exception):
    """Too many requests are waiting: of this client if `is_client_limit`, else of all clients together."""

    def __init__(self, message: str, is_client_limit: bool):
        super().__init__(message)
        self.is_client_limit = is_client_limit


def stop_if_gone() -> None:
    """Raise `Cancelled` if the client of the running request has disconnected. Long computations call this now and then."""
    gone = CLIENT_GONE.get()
    if gone is not None and gone.is_set():
        raise Cancelled("The client has gone.")


class RequestQueue:
    """One queue for each client, served in rotation, so that nobody has to wait for all the clicks of another client.

    The limits are the numbers of requests that run at the same time, that wait of all clients together, and that wait of each client.
    """

    def __init__(self, max_running: int = 1, max_waiting: int = 64, max_waiting_per_client: int = 8):
        self.max_running, self.max_waiting, self.max_waiting_per_client = max_running, max_waiting, max_waiting_per_client
        self.running = 0  # Number of requests that run now.
        self._queues: OrderedDict[str, deque[asyncio.Future]] = OrderedDict()

    @classmethod
    def of(cls, app) -> "RequestQueue":
        """Return the request queue of an app; the first call creates it with the limits from `--conf`."""
        if not hasattr(app, "request_queue"):
            limits = (("concurrent", 1), ("queue", 64), ("queue_per_client", 8))
            app.request_queue = cls(*(int(app.conf.get(name, default)) for name, default in limits))
        return app.request_queue

    @property
    def waiting(self) -> int:
        """The number of requests that wait now."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def turn(self, client: str):
        """Wait for this client's turn, or raise `QueueFull`; hold the turn within the context. A cancelled wait gives up its place."""
        await self._enter(client)
        try:
            yield
        finally:
            self._leave(client)

    async def _enter(self, client: str) -> None:
        """Wait until this client may run."""
        if self.running < self.max_running:
            self.running += 1
            return
        if len(self._queues.get(client, ())) >= self.max_waiting_per_client:
            raise QueueFull(f"{self.max_waiting_per_client} requests of yours are waiting already: wait for their answers.", True)
        if self.waiting >= self.max_waiting:
            raise QueueFull(f"The server is busy: {self.max_waiting} requests are waiting. Try again in a while.", False)
        place = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # The turn came at the same moment as the cancellation.
                self._leave(client)
            elif place in (queue := self._queues.get(client, ())):
                queue.remove(place)
                if not queue:
                    del self._queues[client]
            raise

    def _leave(self, client: str) -> None:
        """Hand the turn of `client` to the client that has waited longest for one."""
        if client in self._queues:
            self._queues.move_to_end(client)
        while self._queues:
            next_client, queue = self._queues.popitem(last=False)
            place = queue.popleft()
            if queue:
                self._queues[next_client] = queue  # The rest of its requests wait behind those of the other clients.
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1
