"""Observability of a server: one log line per request and metrics for Prometheus, without patient data."""

import logging
import time
from contextvars import ContextVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

logger = logging.getLogger(__name__)

NOTES: ContextVar[dict | None] = ContextVar("notes", default=None)
DEBUG_PATHS = ("/ohif", "/dicomweb", "/static", "/proxy", "/metrics", "/favicon")  # Logged as DEBUG: a page of OHIF sends hundreds of these requests.
BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)

REGISTRY = CollectorRegistry()
REQUESTS = Counter("sam2_requests", "Requests answered", ("method", "route", "status"), registry=REGISTRY)
DURATION = Histogram("sam2_request_seconds", "Seconds until the answer", ("route",), buckets=BUCKETS_S, registry=REGISTRY)
STAGES = Histogram("sam2_stage_seconds", "Seconds of the stages of inference", ("stage",), buckets=BUCKETS_S, registry=REGISTRY)
ENCODED = Counter("sam2_slices_encoded", "Slices encoded while a request waited for them", registry=REGISTRY)
CACHED = Counter("sam2_inferences", "Inferences, by whether all slices had been encoded before", ("cached",), registry=REGISTRY)
WAITING = Gauge("sam2_requests_waiting", "Requests waiting for their turn", registry=REGISTRY)
RUNNING = Gauge("sam2_requests_running", "Requests whose model runs", registry=REGISTRY)
FEATURES = Gauge("sam2_feature_bytes", "Bytes of encoded slices held", registry=REGISTRY)


def note(**values) -> None:
    """Add values to the log line of the request that is being answered."""
    notes = NOTES.get()
    if notes is not None:
        notes.update(values)


def note_inference(answer: dict, image: str, model: str, foreground: int, background: int) -> None:
    """Count an answer of `/infer` in the metrics and add it to the request's log line.

    Args:
        answer: The JSON part, with `latencies` (seconds of each stage) and `slices_encoded`.
        foreground, background: Numbers of clicks.
    """
    stages, encoded = answer.get("latencies", {}), answer.get("slices_encoded", 0)
    for stage, seconds in stages.items():
        STAGES.labels(stage).observe(seconds)
    ENCODED.inc(encoded)
    CACHED.labels("no" if encoded else "yes").inc()
    milliseconds = {f"{k}_ms": round(1000 * v) for k, v in stages.items() if k != "total"}
    note(image=image, model=model, foreground=foreground, background=background, encoded=encoded, **milliseconds)


class RequestMonitor:
    """ASGI middleware that times and counts requests and logs one line for each."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, notes = time.perf_counter(), 500, {}
        NOTES.set(notes)

        async def send_and_keep_status(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_keep_status)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            REQUESTS.labels(scope["method"], route, status).inc()
            DURATION.labels(route).observe(seconds)
            level = logging.DEBUG if route == "other" or route.startswith(DEBUG_PATHS) else logging.INFO
            if logger.isEnabledFor(level):
                client = notes.pop("client", (scope.get("client") or ["-"])[0])
                fields = {"client": client, "method": scope["method"], "path": scope["path"], "status": status}
                fields |= {"ms": round(1000 * seconds), **notes}
                logger.log(level, "request %s", " ".join(f"{k}={_printable(v)}" for k, v in fields.items()))


def _printable(value) -> str:
    """Return a value as text without spaces and line ends, with which a name from a client could imitate another log entry."""
    text = str(value)
    return text if text.isprintable() and " " not in text and len(text) < 200 else repr(text[:200]).replace(" ", "_")
