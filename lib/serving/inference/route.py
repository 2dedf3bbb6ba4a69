"""The route `POST /infer/{model}`, which replaces MONAI Label's.

Requests and answers are the same. But the model runs in a thread, clients take turns, and a run ends when its client has disconnected.
"""

import asyncio
import json
import os
import threading
from collections.abc import Callable
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
from lib.serving.datastore import dicom_labels
from lib.serving.dicomweb.index import SeriesIndex
from lib.serving.dicomweb.viewer_grid import VIEWER_REQUEST
from lib.serving.inference.request_queue import CLIENT_GONE, QueueFull, RequestQueue
from lib.serving.web import request_checks
from lib.serving.web.client_identity import client_name
from lib.serving.web.http_errors import clear_errors

REQUIRE_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
# Set by the server, never taken from params.
RESERVED_FIELDS = ("model", "image", "image_id", "image_digest", "session", "session_id", "file", VIEWER_REQUEST)
DISCONNECT_CHECK_S = 0.3  # How often a waiting request checks whether its client is still connected.

# MONAI Label's own conversions know neither tilted nor multi-frame series.
infer.binary_to_image, infer.nifti_to_dicom_seg = dicom_labels.binary_to_image, dicom_labels.nifti_to_dicom_seg

router = APIRouter(tags=["Infer"])


@router.post("/infer/{model}", summary="A mask for clicks, boxes or painted slices", responses=infer.router.responses)
async def run(
    request: Request, background_tasks: BackgroundTasks, model: str, image: str = "", session_id: str = "", params: str = Form("{}"),
    file: UploadFile = File(None), label: UploadFile = File(None),  # noqa: B008
    output: infer.ResultType | None = None, user: User = REQUIRE_USER,
):  # fmt: skip
    """Segment an image, an uploaded file or the volume of a session with one of the app's models."""
    app = app_instance()
    fields = request_checks.parse_json_object(params, "params")
    for upload in (file, label):
        request_checks.clean_file_name(upload)
    client = fields["client_id"] = client_name(request, user, fields)
    observability.note(client=client)
    gone = threading.Event()
    CLIENT_GONE.set(gone)
    image = await anyio.to_thread.run_sync(_check_request, app, model, image, session_id, file, output, fields)
    if label and fields.get("label"):  # MONAI Label would take this name for the path of the uploaded file.
        fields.setdefault("selected_label_name", fields.pop("label"))
    infer_now = partial(infer.run_inference, background_tasks, model, image, session_id, json.dumps(fields), file, label, output)
    task = asyncio.ensure_future(_run_in_turn(RequestQueue.of(app), client, clear_errors(400, loose=True)(infer_now)))
    try:
        while not (await asyncio.wait({task}, timeout=DISCONNECT_CHECK_S))[0]:
            if await request.is_disconnected():
                raise HTTPException(499, "The client has gone.")
        result = task.result()
        if output == infer.ResultType.dicom_seg:
            background_tasks.add_task(os.unlink, result.path)
        return result
    except QueueFull as e:
        raise HTTPException(429 if e.is_client_limit else 503, str(e), headers={"Retry-After": "5"}) from e
    finally:
        gone.set()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled() or task.exception():
            await background_tasks()  # These remove uploaded files. FastAPI runs them only after successful answers.


async def _run_in_turn(queue: RequestQueue, client: str, infer_now: Callable):
    """Wait for the client's turn, then run the inference in a thread."""
    async with queue.turn(client):
        # A limiter of its own: a run must not wait for one of the threads that all other routes share.
        return await anyio.to_thread.run_sync(infer_now, limiter=anyio.CapacityLimiter(1))


@clear_errors()
def _check_request(app, model: str, image: str, session_id: str, file, output, fields: dict) -> str:
    """Refuse a request that would fail or lead out of the datastore, before it waits, and return the id of its image.

    The reserved fields are removed from `fields`; `VIEWER_REQUEST` is set if the image is named by a SeriesInstanceUID of this server.
    """
    by_series = False
    if model not in app._infers:
        raise HTTPException(404, f"There is no model {model!r}; choose one of {', '.join(app._infers)}.")
    if not (file or image or session_id):
        raise HTTPException(422, "Say which image: ?image=ID or ?session_id=ID, or send a file.")
    if image and not (session_id or file):  # Beside a session, 3D Slicer sends the name of its volume, which no datastore knows.
        image, by_series = SeriesIndex.of(app).resolve(image)
        request_checks.check_image_id(image, app.datastore())
    if session_id and not (request_checks.is_name(session_id) and app.sessions() is not None and app.sessions().get_session(session_id)):
        raise HTTPException(404, "There is no such session: it has ended, or the image was never uploaded.")
    if isinstance(fields.get("label"), str) and os.path.isabs(fields["label"]):
        raise HTTPException(422, "The field label is the name of a structure, not a path.")
    if fields.get("label_tag") is not None:
        request_checks.check_tag(str(fields["label_tag"]))
    if output == "dicom_seg" and not (isinstance(app.datastore(), DICOMWebDatastore) and fields.get("label_info")):
        raise HTTPException(422, "DICOM SEG needs a DICOM store and the field label_info in params.")
    for name in RESERVED_FIELDS:
        fields.pop(name, None)
    if by_series:
        fields[VIEWER_REQUEST] = True
    if image and not (session_id or file):
        app.lending.lend(image, fields["client_id"])  # Nobody else is to begin it.
    return image
