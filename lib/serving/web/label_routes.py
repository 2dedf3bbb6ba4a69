"""Routes for labels and for checks of images, which replace some of MONAI Label's: names, comparison, history, checksums.

They are plain functions, which FastAPI runs in its thread pool.
"""

import hashlib
import os
from functools import lru_cache

from fastapi import APIRouter, Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.serving.datastore.history import list_labels, restore_label
from lib.serving.dicomweb.index import SeriesIndex
from lib.serving.web import request_checks
from lib.serving.web.http_errors import clear_errors

USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
ALGORITHMS = ("SHA256", "SHA512", "MD5")
BLOCK_BYTES = 2**20

router = APIRouter(tags=["SAM 2"])


@router.get("/sam2/labels/{image}", summary="The labels of an image, and the history of those that were replaced or removed")
def labels(image: str, user: User = USER) -> dict:
    app = app_instance()
    with clear_errors():
        return list_labels(app.datastore(), _image_id(app, image, may_be_gone=True))


@router.post("/sam2/labels/{image}/restore", summary="Make a label of the history the present one again")
def restore(image: str, name: str, client_id: str = "", user: User = ANNOTATOR) -> dict:
    app = app_instance()
    with clear_errors():
        image = _image_id(app, image)
        tag = restore_label(app.datastore(), image, name, {"client": client_id, "user": user.username})
        return {"image": image, "tag": tag, "restored": name}


@router.head("/datastore/image", summary="Whether an image exists, and has the checksum (ALGORITHM:hex, or SHA-256 as hex alone)")
def check_image(image: str, check_sum: str | None = None, user: User = USER) -> dict:
    app = app_instance()
    with clear_errors():
        path = app.datastore().get_image_uri(_image_id(app, image))
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


def _image_id(app, image: str, *, may_be_gone: bool = False) -> str:
    """Return the id of an image that is named by its id or SeriesInstanceUID.

    Raises:
        HTTPException: 404 if the datastore has no such image, and no label of it in the history if it `may_be_gone`.
    """
    image, _ = SeriesIndex.of(app).resolve(image)
    if not request_checks.is_name(image):
        raise HTTPException(404, "There is no such image in the datastore.")
    if not (may_be_gone and image in app.datastore().history.images()):
        request_checks.check_image_id(image, app.datastore())
        if image not in app.datastore().list_images():
            raise HTTPException(404, "There is no such image in the datastore.")
    return image
