"""Routes for labels and for checks of images, which replace some of MONAI Label's: names, comparison, history, checksums.

They are plain functions, which FastAPI runs in its thread pool.
"""

import hashlib
import os
import shutil
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
from fastapi import APIRouter, Depends, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from starlette.background import BackgroundTask

from lib.imaging.dicom.segmentations import label_values
from lib.imaging.readers import read_mask
from lib.imaging.study_files import LABEL_ENDINGS, split_ending
from lib.imaging.writers import mask_extension, write_mask
from lib.serving.datastore.folder import FINAL, FolderDatastore
from lib.serving.datastore.labels import label_names, label_path, unique_names
from lib.serving.datastore.submissions import submit_label
from lib.serving.datastore.uploaded_labels import BARE_VOXELS
from lib.serving.dicomweb.labels import name_image_by_id
from lib.serving.web import request_checks
from lib.serving.web.client_identity import client_name
from lib.serving.web.forms import answer_form, refuse_other_sites
from lib.serving.web.http_errors import clear_errors
from lib.serving.web.known_images import known_image

USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
ALGORITHMS = ("SHA256", "SHA512", "MD5")
BLOCK_BYTES = 2**20

router = APIRouter(tags=["SAM 2"])


@router.get("/sam2/labels/{image}", summary="The labels of an image, and the history of those that were replaced or removed")
def labels(image: str, user: User = USER) -> dict:
    app = app_instance()
    with clear_errors():
        store = app.datastore()  # The history may have labels of images that are gone.
        return store.list_labels(image if image in store.history.images() else known_image(app, image))


@router.post("/sam2/labels/{image}/restore", summary="Make a label of the history the present one again", response_model=None)
def restore(request: Request, image: str, name: str, client_id: str = "", user: User = ANNOTATOR) -> Response:
    """Answer with image, tag and restored (the name), as JSON; a form of the page /sam2/ is sent back to that page."""
    refuse_other_sites(request)
    app = app_instance()
    with clear_errors():
        image = known_image(app, image)
        client = client_name(request, user, {"client_id": client_id})
        tag = app.datastore().restore_label(image, name, {"client": client, **_known_user(user)})
    return answer_form(request, {"image": image, "tag": tag, "restored": name})


def history_on_page(app, image: str) -> list[dict]:
    """Return what the page of volumes displays of the history of an image's labels, the newest first."""
    store = app.datastore()
    items = store.label_history(image) if isinstance(store, FolderDatastore) else []
    return [
        {**item, "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(item["time"])) if item.get("time") else ""} for item in items
    ]  # fmt: skip


@router.put("/datastore/label", summary="Save a label; the answer names the structures that differ from the saved one")
def save_label(
    request: Request, image: str, label: UploadFile, params: str = Form("{}"), tag: str = FINAL, user: User = ANNOTATOR
) -> dict:  # fmt: skip
    """Answer as MONAI Label does, and with "structures" as `lib.serving.datastore.submissions.submit_label` returns them.

    The fields "keep" and "preview" of `params` are explained there, too; "stored" says whether the label was stored.
    """
    app = app_instance()
    request_checks.clean_file_name(label)
    fields = request_checks.parse_json_object(params, "params")
    request_checks.check_tag(tag := tag or FINAL)
    with clear_errors(loose=True, upload=True):
        named = {"image": image, "label": label}
        name_image_by_id(app, named)
        image = request_checks.check_image_id(named["image"], app.datastore())
        client = client_name(request, user, fields)
        fields |= {"client": client, **_known_user(user)}
        # The label was made with the checkpoint of the client's last round, or else of anybody's.
        last = max(app.records.for_image(image).values(), key=lambda r: (r["client"] == client, r["time"]), default={})
        fields.setdefault("checkpoint", last.get("checkpoint", ""))
        ending = split_ending(label.filename or "", (*LABEL_ENDINGS, BARE_VOXELS))[1].lower()
        with tempfile.NamedTemporaryFile(prefix="sam2_label_", suffix=ending) as file:
            shutil.copyfileobj(label.file, file)
            file.flush()
            structures = submit_label(app.datastore(), image, file.name, tag, fields)
        is_stored = not fields.get("preview")
        answer = (app.on_save_label(image, image) or {}) if is_stored else {}
    return {**answer, "image": image, "label": image, "structures": structures, "stored": is_stored}


@router.get("/datastore/label", response_class=FileResponse, summary="A label as it was saved, or with another ending")
def download_label(label: str, tag: str, extension: str = "", user: User = USER) -> FileResponse:
    """Answer with the label of an image; with extension=.seg.nrrd it carries the names of its structures."""
    request_checks.check_tag(tag)
    app = app_instance()
    with clear_errors():
        image = known_image(app, label)
        path = label_path(app.datastore(), image, tag)
        if path is None or not path.is_file():
            raise HTTPException(404, f"There is no label {tag} of this image.")
        if not extension:
            return FileResponse(path, filename=path.name)
        grid = app.datastore().image_grid(image)
        labels = read_mask(path, grid)
        names = unique_names(label_values(labels), label_names(app.datastore(), image, tag))
        folder = tempfile.mkdtemp(prefix="sam2_label_")
        remove = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
        try:
            dtype = np.min_scalar_type(int(labels.max(initial=0))).name
            file = write_mask(labels, grid, Path(folder, f"label{mask_extension(extension)}"), dtype=dtype, label=names)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return FileResponse(file, filename=image + mask_extension(extension), background=remove)


@router.head("/datastore/image", summary="Whether an image exists, and has the checksum (ALGORITHM:hex, or SHA-256 as hex alone)")
def check_image(image: str, check_sum: str | None = None, user: User = USER) -> dict:
    app = app_instance()
    with clear_errors():
        path = app.datastore().get_image_uri(known_image(app, image))
        if not os.path.isfile(path):
            raise HTTPException(404, "There is no such image in the datastore.")
        if check_sum:
            algorithm, _, digest = check_sum.rpartition(":")
            algorithm = (algorithm or ALGORITHMS[0]).upper()
            if algorithm not in ALGORITHMS:
                raise HTTPException(422, f"The checksum must begin with one of {', '.join(ALGORITHMS)} and a colon.")
            if checksum(path, algorithm).rpartition(":")[2] != digest.lower():
                raise HTTPException(404, "The image has another checksum.")
    return {}


def checksum(path: str, algorithm: str = ALGORITHMS[0]) -> str:
    """Return the checksum of a file in the form that 3D Slicer uses, "SHA256:" and hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    stat = os.stat(path)
    return _checksum(path, algorithm, (stat.st_size, stat.st_mtime_ns, stat.st_ino))


@lru_cache(1024)
def _checksum(path: str, algorithm: str, file_version: tuple[int, int, int]) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


def _known_user(user: User) -> dict[str, str]:
    """Return the field user with the name of an authenticated user; without authentication, nobody is known."""
    return {"user": user.username} if settings.MONAI_LABEL_AUTH_ENABLE else {}
