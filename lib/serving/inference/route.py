"""`POST /infer/{model}`: as MONAI Label's, but in a thread, clients in turn, and ended when its client has gone."""

import asyncio
import json
import os
import threading
from functools import partial

import anyio
from fastapi import APIRouter, Depends, File, Form, HTTPException, Request, UploadFile
from fastapi.background import BackgroundTasks
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import infer
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.serving import observability
from lib.serving.inference.request_queue import GONE, QueueFull, RequestQueue
from lib.serving.web import request_checks
from lib.serving.web.http_errors import clear_errors

ALLOWED = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
RESERVED = ("model", "image", "image_id", "session", "session_id", "file")  # only the server says these
LOOK = 0.3  # seconds between looks whether the client is still there

router = APIRouter(tags=["Infer"])


@router.post("/infer/{model}", summary="A mask for clicks, boxes or painted slices", responses=infer.router.responses)
async def run(
    request: Request,
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: str = Form("{}"),
    file: UploadFile = File(None),  # noqa: B008
    label: UploadFile = File(None),  # noqa: B008
    output: infer.ResultType | None = None,
    user: User = ALLOWED,
):
    app = app_instance()
    fields = request_checks.json_object(params, "params")
    for upload in (file, label):
        request_checks.file_name(upload)
    client = _client(request, user, fields)
    observability.note(client=client)
    check = partial(_check, app, model, image, session_id, file, output, fields)
    gone = threading.Event()
    GONE.set(gone)
    await anyio.to_thread.run_sync(check)
    if label and fields.get("label"):  # MONAI Label would take the name for the path of the file
        fields.setdefault("selected_label_name", fields.pop("label"))
    work = partial(infer.run_inference, background_tasks, model, image, session_id, json.dumps(fields), file, label, output)
    job = asyncio.ensure_future(_in_turn(turns_of(app), client, work))
    try:
        while not (await asyncio.wait({job}, timeout=LOOK))[0]:
            if await request.is_disconnected():
                raise HTTPException(499, "The client has gone.")
        return job.result()
    except QueueFull as e:
        raise HTTPException(429 if e.own else 503, str(e), headers={"Retry-After": "5"}) from e
    finally:
        gone.set()
        if not job.done():
            job.cancel()
            await asyncio.wait({job})
        if job.cancelled() or job.exception():
            await background_tasks()  # FastAPI runs them, which remove uploaded files, after good answers only


async def _in_turn(turns: RequestQueue, client: str, work):
    async with turns.turn(client):
        return await anyio.to_thread.run_sync(_run, work, limiter=anyio.CapacityLimiter(1))


def _run(work):
    with clear_errors(400, loose=True):
        return work()


def _check(app, model: str, image: str, session_id: str, file, output, fields: dict) -> None:
    """Refuses what would end in an error, or lead out of the datastore, before anything waits for it."""
    with clear_errors():
        if model not in app._infers:
            raise HTTPException(404, f"There is no model {model!r}; choose one of {', '.join(app._infers)}.")
        if not (file or image or session_id):
            raise HTTPException(422, "Say which image: ?image=ID or ?session_id=ID, or send a file.")
        if image and not (session_id or file):  # Slicer sends the name of its volume beside a session
            request_checks.known_image(image, app.datastore())
        if session_id and not (request_checks.is_name(session_id) and app.sessions() is not None and app.sessions().get_session(session_id)):
            raise HTTPException(404, "There is no such session: it has ended, or the image was never uploaded.")
        if isinstance(fields.get("label"), str) and os.path.isabs(fields["label"]):
            raise HTTPException(422, "The field label is the name of a structure, not a path.")
        if fields.get("label_tag") is not None:
            request_checks.tag(str(fields["label_tag"]))
        if output == "dicom_seg" and not (isinstance(app.datastore(), DICOMWebDatastore) and fields.get("label_info")):
            raise HTTPException(422, "DICOM SEG needs a DICOM store and the field label_info in params.")
    for name in RESERVED:
        fields.pop(name, None)


def turns_of(app) -> RequestQueue:
    """The queue of an app."""
    if not hasattr(app, "turns"):
        conf = app.conf
        app.turns = RequestQueue(*(int(conf.get(k, v)) for k, v in (("concurrent", 1), ("queue", 64), ("queue_per_client", 8))))
    return app.turns


def _client(request: Request, user: User, fields: dict) -> str:
    """Who asks: the user where there are any, else Slicer's client id, else the address."""
    if settings.MONAI_LABEL_AUTH_ENABLE:
        return user.username
    return str(fields.get("client_id") or (request.client.host if request.client else "-"))[:100]
