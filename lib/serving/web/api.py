"""Installation of the app's routes before MONAI Label's own ones, and wrapping of those with threads, checks and clear errors.

MONAI Label's routes are `async` functions that block the event loop, and with it all other requests. Here each of them runs in a thread.
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
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.interfaces.utils.app import app_instance
from starlette.datastructures import UploadFile  # FastAPI's own class is a subclass, which it does not use.
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route

from lib.imaging.study_files import split_ending
from lib.serving.datastore.checks import IMAGE_UPLOAD_ENDINGS
from lib.serving.dicomweb import routes as dicomweb_routes
from lib.serving.dicomweb.labels import name_image_by_id
from lib.serving.inference import route
from lib.serving.observability import RequestMonitor
from lib.serving.web import label_routes, login_page, ohif_annotation, ohif_files, request_checks, routes, volume_choices
from lib.serving.web.http_errors import clear_errors

WRAPPED_MODULES = (info, model, wsi_infer, batch_infer, train, activelearning, scoring, datastore, logs, proxy, session)
MONAI_LABEL_PREFIX = "monailabel.endpoints."
TASK_TABLES = {"train": "_trainers", "batch_infer": "_infers", "model": "_infers", "wsi_infer": "_infers"}
UPLOADS = ("api_add_image", "api_save_label", "api_create_session")
MAX_THREADS = {"datastore": 8, "proxy": 16, "session": 8}  # Limits of routes that wait for files or the DICOM store.
_datastore_lock = threading.RLock()  # MONAI Label's datastores expect one caller at a time.


def install(app: FastAPI, cors_origins: str = "") -> None:
    """Put the app's routes first and wrap those of MONAI Label. Further calls do nothing.

    Args:
        cors_origins: Addresses of the sites whose pages may use the server, separated by commas; all sites if it is empty.
    """
    if getattr(app.state, "sam2_routes", False):
        return
    app.state.sam2_routes = True
    app.router.routes[:] = [r for r in app.router.routes if isinstance(r, (Route, Mount)) and not _is_replaced(r)]
    prefix = settings.MONAI_LABEL_API_STR
    routers = (route.router, routes.router, label_routes.router, volume_choices.router, ohif_annotation.router, dicomweb_routes.router,
               ohif_files.router)  # fmt: skip
    for router in (*routers, _wrap_routes(WRAPPED_MODULES)):
        app.include_router(router, prefix=prefix)
    if settings.MONAI_LABEL_AUTH_ENABLE:
        app.include_router(login.router, prefix=prefix)
        app.include_router(login_page.router, prefix=prefix)
    app.add_exception_handler(RequestValidationError, _answer_wrong_fields)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_failure)
    app.user_middleware.insert(0, Middleware(RequestMonitor))
    if origins := [o.strip().rstrip("/") for o in cors_origins.split(",") if o.strip()]:
        next(m for m in app.user_middleware if m.cls is CORSMiddleware).kwargs["allow_origins"] = origins
    if settings.MONAI_LABEL_AUTH_ENABLE:
        app.user_middleware.insert(1, Middleware(login_page.CookieToken))
    app.middleware_stack = app.build_middleware_stack()  # The server has built it already, without the lines above.
    for name in ("uvicorn.access", "monailabel.endpoints.infer"):  # `RequestMonitor` logs the same in one line
        logging.getLogger(name).setLevel(logging.WARNING)


def _is_replaced(route: Route | Mount) -> bool:
    """Return whether a route is MONAI Label's, which is wrapped below, or `POST /reload`, with which anybody could unload the app."""
    return getattr(route, "endpoint", install).__module__.startswith(MONAI_LABEL_PREFIX) or route.path == "/reload"


def _wrap_routes(modules) -> APIRouter:
    """Return the routes of MONAI Label's modules with wrapped endpoints."""
    router = APIRouter()
    for r in (r for m in modules for r in m.router.routes):
        router.add_api_route(
            r.path, _wrap_endpoint(r.endpoint), methods=r.methods, name=r.name, summary=r.summary, tags=r.tags, responses=r.responses,
            dependencies=r.dependencies, deprecated=r.deprecated, include_in_schema=r.include_in_schema, response_model=r.response_model,
        )  # fmt: skip
    return router


def _wrap_endpoint(endpoint):
    """Return an endpoint of MONAI Label that checks its fields, runs in a thread and answers with clear errors."""
    kind = endpoint.__module__.removeprefix(MONAI_LABEL_PREFIX)
    limiter = anyio.CapacityLimiter(MAX_THREADS[kind]) if kind in MAX_THREADS else None
    locked = kind == "datastore" and "download" not in endpoint.__name__

    @functools.wraps(endpoint)
    async def call(**fields):
        for value in fields.values():
            if isinstance(value, Request):
                await value.body()  # The request keeps it, so the endpoint need not wait for it on the event loop.
        try:
            return await anyio.to_thread.run_sync(run, fields, limiter=limiter)
        except Exception:
            if tasks := fields.get("background_tasks"):
                await tasks()  # They delete uploaded files, and FastAPI runs them only after successful answers.
            raise

    def run(fields):
        with clear_errors(loose=True, upload=endpoint.__name__ in UPLOADS):
            _check_fields(kind, endpoint.__name__, fields)
            with _datastore_lock if locked else nullcontext():
                answer = _finish(endpoint(**fields))
            # The log grows while it is sent, and would then be longer than its Content-Length.
            if kind == "logs" and isinstance(answer, FileResponse):
                return Response(Path(answer.path).read_bytes(), media_type=answer.media_type)
            return answer

    return call


def _finish(result):
    """Return the result of an endpoint, also of a coroutine that never waits for anything. Raise 404 if it is a missing file."""
    if inspect.iscoroutine(result):
        try:
            result.send(None)
            result.close()
            raise RuntimeError("This endpoint waits for something.")
        except StopIteration as end:
            result = end.value
    if isinstance(result, FileResponse) and not os.path.isfile(result.path):  # It may be a folder, or deleted meanwhile.
        raise HTTPException(404, "There is no such file.")
    return result


def _check_fields(kind: str, endpoint_name: str, fields: dict) -> None:
    """Refuse a request that names something unknown (404), or holds an invalid name or JSON (422). `kind` is the endpoint's module."""
    app = app_instance()
    model_name = fields.get("model")
    if kind in TASK_TABLES and model_name is not None and model_name not in (tasks := getattr(app, TASK_TABLES[kind])):
        raise HTTPException(404, f"There is nothing called {model_name!r} here; choose one of {', '.join(tasks)}.")
    if kind == "proxy" and not str(app.studies).startswith("http"):
        raise HTTPException(404, "The images are files in a folder: there is no DICOM store.")
    if endpoint_name == "api_run" and kind == "batch_infer":
        raise HTTPException(400, "The server makes no masks without prompts. For many images at once, use the command main.py batch, which reads prompts from files.")
    if kind == "session":
        if fields.get("uncompress"):
            raise HTTPException(422, "Archives are not unpacked: send the files themselves.")
        if not request_checks.is_name(fields.get("session_id", "-")):
            raise HTTPException(404, "There is no such session.")
    for upload in [fields.get("file"), *(fields.get("files") or ()), fields.get("label")]:
        if isinstance(upload, UploadFile):
            request_checks.clean_file_name(upload)
    for text in ("params", "info"):
        if isinstance(fields.get(text), str):
            request_checks.parse_json_object(fields[text], text)
        elif isinstance(fields.get(text), dict):
            request_checks.check_serializable(fields[text], text)
    if endpoint_name == "gpu_info" and not shutil.which("nvidia-smi"):
        raise HTTPException(404, "This server has no nvidia-smi.")
    if endpoint_name == "api_download_dataset" and not app.datastore().datalist():
        raise HTTPException(404, "No image has a final label: there is nothing to download.")
    if kind == "datastore":
        _check_datastore_fields(app, endpoint_name, fields)


def _check_datastore_fields(app, endpoint_name: str, fields: dict) -> None:
    if fields.get("tag"):
        request_checks.check_tag(fields["tag"])
    if endpoint_name == "api_add_image":
        name, ending = split_ending(fields["file"].filename or "", IMAGE_UPLOAD_ENDINGS)
        if not ending:
            raise HTTPException(422, f"Images are single files with one of the endings {', '.join(IMAGE_UPLOAD_ENDINGS)}.")
        fields["image"] = fields.get("image") or name  # MONAI Label would cut the name at its first dot.
        if not request_checks.is_name(fields["image"]):
            raise HTTPException(422, "An image id is a name without / and \\.")
        return
    name_image_by_id(app, fields)
    for field in ("image", "id", "label"):
        if isinstance(fields.get(field), str):
            request_checks.check_image_id(fields[field], app.datastore())


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 401 and (redirect := login_page.login_redirect(request)):
        return redirect
    detail = error.detail.encode(errors="replace").decode() if isinstance(error.detail, str) else error.detail
    return JSONResponse({"detail": detail}, error.status_code, error.headers)


async def _answer_wrong_fields(request: Request, error: RequestValidationError) -> JSONResponse:
    problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
    return await _answer_http_error(request, HTTPException(422, f"The request is not complete or has wrong fields: {problems}."))


async def _answer_failure(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "The server failed; what happened is in its log."}, 500)
