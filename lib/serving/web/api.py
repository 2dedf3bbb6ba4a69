"""What stands before MONAI Label's own routes: the app's routes, checks, threads, and sentences for errors.

MONAI Label's routes are `async` functions that work on the event loop, so that no one is answered while one of them runs. Here
each runs in a thread.
"""

import functools
import inspect
import logging
import os
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path

import anyio
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    info,
    login,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.interfaces.utils.app import app_instance
from starlette.datastructures import UploadFile  # FastAPI's own class is a subclass, which it does not use
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from lib.serving.inference import route
from lib.serving.observability import Watch
from lib.serving.web import request_checks, routes
from lib.serving.web.http_errors import clear_errors

logger = logging.getLogger(__name__)

ROUTERS = (info, model, wsi_infer, batch_infer, train, activelearning, scoring, datastore, logs, ohif, proxy, session)
OWN = "monailabel.endpoints."
TASKS = {"train": "_trainers", "batch_infer": "_infers", "model": "_infers", "wsi_infer": "_infers"}
AT_ONCE = {"datastore": 8, "proxy": 16, "session": 8}  # threads that may wait for files or the DICOM store; others go on
_one_caller = threading.RLock()  # MONAI Label's datastores expect one caller at a time


def install(app: FastAPI) -> None:
    """Puts the app's routes first and wraps those of MONAI Label; once, however often it is called."""
    if getattr(app.state, "sam2_routes", False):
        return
    app.state.sam2_routes = True
    app.router.routes[:] = [r for r in app.router.routes if isinstance(r, (Route, Mount)) and not _is_endpoint(r)]
    prefix = settings.MONAI_LABEL_API_STR
    for router in (route.router, routes.router, _wrapped(ROUTERS)):
        app.include_router(router, prefix=prefix)
    if settings.MONAI_LABEL_AUTH_ENABLE:
        app.include_router(login.router, prefix=prefix)
    app.add_exception_handler(RequestValidationError, _wrong_fields)
    app.add_exception_handler(HTTPException, _said)
    app.add_exception_handler(Exception, _failed)
    app.user_middleware.insert(0, Middleware(Watch))
    app.middleware_stack = app.build_middleware_stack()  # the server has made one already, without these
    for name in ("uvicorn.access", "monailabel.endpoints.infer"):  # `Watch` says it in one line
        logging.getLogger(name).setLevel(logging.WARNING)


def _is_endpoint(route) -> bool:
    """Whether a route is wrapped below, or lets anybody drop the app (`POST /reload`)."""
    return getattr(route, "endpoint", install).__module__.startswith(OWN) or route.path == "/reload"


def _wrapped(modules) -> APIRouter:
    """The routes of MONAI Label's modules, run by `_guarded`."""
    router = APIRouter()
    for endpoint_route in (r for m in modules for r in m.router.routes):
        router.add_api_route(
            endpoint_route.path, _guarded(endpoint_route.endpoint), methods=endpoint_route.methods, name=endpoint_route.name, summary=endpoint_route.summary, tags=endpoint_route.tags,
            responses=endpoint_route.responses, dependencies=endpoint_route.dependencies, deprecated=endpoint_route.deprecated,
            include_in_schema=endpoint_route.include_in_schema, response_model=endpoint_route.response_model,
        )  # fmt: skip
    return router


def _guarded(endpoint):
    """An endpoint of MONAI Label with checked fields, in a thread, with clear errors."""
    kind = endpoint.__module__.removeprefix(OWN)
    limiter = anyio.CapacityLimiter(AT_ONCE[kind]) if kind in AT_ONCE else None
    locked = kind == "datastore" and "download" not in endpoint.__name__

    @functools.wraps(endpoint)
    async def call(**fields):
        for value in fields.values():
            if isinstance(value, Request):
                await value.body()  # is kept, so that the endpoint need not wait for it
        try:
            return await anyio.to_thread.run_sync(work, fields, limiter=limiter)
        except Exception:
            if tasks := fields.get("background_tasks"):
                await tasks()  # they remove uploads; FastAPI runs them after good answers only
            raise

    def work(fields):
        with clear_errors(loose=True):
            _check(kind, endpoint.__name__, fields)
            with _one_caller if locked else nullcontext():
                answer = _finish(endpoint(**fields))
            if kind == "logs" and isinstance(answer, FileResponse):  # the file grows while it is sent
                return Response(Path(answer.path).read_bytes(), media_type=answer.media_type)
            return answer

    return call


def _finish(result):
    """The result of a function that is `async` by name only.

    Raises:
        HTTPException: 404, it is a file that is not there.
    """
    if inspect.iscoroutine(result):
        try:
            result.send(None)
            result.close()
            raise RuntimeError("This endpoint waits for something.")
        except StopIteration as end:
            result = end.value
    if isinstance(result, FileResponse) and not os.path.isfile(result.path):  # a folder, or gone in the meantime
        raise HTTPException(404, "There is no such file.")
    return result


def _check(kind: str, name: str, fields: dict) -> None:
    """Refuses names that are no names, and texts that are not JSON.

    Raises:
        HTTPException: 404, 422.
    """
    app = app_instance()
    wanted = fields.get("model")
    if kind in TASKS and wanted is not None and wanted not in getattr(app, TASKS[kind]):
        raise HTTPException(404, f"There is nothing called {wanted!r} here; choose one of {', '.join(getattr(app, TASKS[kind]))}.")
    if kind == "proxy" and not str(app.studies).startswith("http"):
        raise HTTPException(404, "The images are files in a folder: there is no DICOM store.")
    if kind == "session":
        if fields.get("uncompress"):
            raise HTTPException(422, "Archives are not unpacked: send the files themselves.")
        if not request_checks.is_name(fields.get("session_id", "-")):
            raise HTTPException(404, "There is no such session.")
    for upload in [fields.get("file"), *(fields.get("files") or ()), fields.get("label")]:
        if isinstance(upload, UploadFile):
            request_checks.file_name(upload)
    for text in ("params", "info"):
        if isinstance(fields.get(text), str):
            request_checks.json_object(fields[text], text)
        elif isinstance(fields.get(text), dict):
            request_checks.can_be_sent(fields[text], text)
    if name == "gpu_info" and not shutil.which("nvidia-smi"):
        raise HTTPException(404, "This server has no nvidia-smi.")
    if name == "api_download_dataset" and not app.datastore().datalist():
        raise HTTPException(404, "No image has a final label: there is nothing to download.")
    if kind == "datastore":
        _check_ids(app, name, fields)


def _check_ids(app, name: str, fields: dict) -> None:
    if fields.get("tag"):
        request_checks.tag(fields["tag"])
    if name == "api_add_image":
        image, file = fields.get("image"), fields["file"].filename or ""
        if image and not request_checks.is_name(image):
            raise HTTPException(422, "An image id is a name without / and \\.")
        if not file.lower().endswith(tuple(e.lstrip("*") for e in settings.MONAI_LABEL_DATASTORE_FILE_EXT)):
            raise HTTPException(422, f"Images are files with one of the endings {', '.join(settings.MONAI_LABEL_DATASTORE_FILE_EXT)}.")
        return
    for field in ("image", "id", "label"):
        if isinstance(fields.get(field), str):
            request_checks.known_image(fields[field], app.datastore())


async def _said(request: Request, error: HTTPException) -> JSONResponse:
    detail = error.detail.encode(errors="replace").decode() if isinstance(error.detail, str) else error.detail
    return JSONResponse({"detail": detail}, error.status_code, error.headers)


async def _wrong_fields(request: Request, error: RequestValidationError) -> JSONResponse:
    said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
    return await _said(request, HTTPException(422, f"The request is not complete or has wrong fields: {said}."))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "The server failed; what happened is in its log."}, 500)
