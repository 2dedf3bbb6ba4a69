"""What the page around OHIF asks for besides MONAI Label's own routes: its script modules, the state of an image, and its saved label.

The page counts voxels and slices as OHIF does (see `lib.serving.dicomweb.viewer_grid`), so the answers do, too.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.imaging import geometry
from lib.imaging.dicom.segmentations import label_values
from lib.imaging.readers import read_mask
from lib.imaging.volume import Grid
from lib.serving.datastore.labels import label_names, label_path, unique_names
from lib.serving.dicomweb.viewer_grid import is_reversed, mask_to_viewer
from lib.serving.web.client_identity import client_name
from lib.serving.web.http_errors import clear_errors
from lib.serving.web.known_images import known_image

FOLDER = Path(__file__).with_name("templates") / "ohif"
TAG = "final"  # The label that Submit saves.
MAX_VALUE = 255  # Of OHIF's label maps.
ALLOWED = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
UNCACHED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

router = APIRouter(prefix="/sam2/ohif", tags=["SAM 2"], dependencies=[ALLOWED])


@router.get("/scripts/{name}", include_in_schema=False)
def script(name: str) -> Response:
    """Answer with a script module of the page."""
    files = {p.name: p for p in FOLDER.glob("*.js")}
    if name not in files:
        raise HTTPException(404, "There is no such script.")
    return FileResponse(files[name], media_type="text/javascript", headers={"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})


@router.get("/state", summary="The slicing axis of an image and what is known of its structures, with slices as OHIF's volume counts them")
def state(request: Request, image: str = "", user: User = ALLOWED) -> dict:
    """Answer with axis, slices, reversed (whether the file counts k the other way round) and structures.

    Each structure has label, annotated, expected_dice (of every slice), volume_dice, proposed (a slice or None) and reason.
    """
    app = app_instance()
    image = known_image(app, image)
    with clear_errors():
        grid = app.readable_volumes.open(image, app.datastore()).grid
    axis = geometry.slicing_axis(grid.shape, geometry.spacing(grid.affine))
    client, records = client_name(request, user, {}), app.records.for_image(image).values()
    fitting = [r for r in records if r["label"] and r["axis"] == axis and r["slices"] == grid.shape[axis]]
    # Several clients may have a record of one structure: the client's own counts, or else the newest.
    fitting = {r["label"]: r for r in sorted(fitting, key=lambda r: (r["client"] == client, r["time"]))}.values()
    return {
        "axis": axis, "slices": grid.shape[axis], "reversed": is_reversed(grid.affine),
        "structures": [_structure_as_viewed(record, grid) for record in fitting],
    }  # fmt: skip


@router.get("/label", summary="The saved label of an image as bare voxels in OHIF's order", responses={204: {"description": "None is saved"}})
def label(image: str = "") -> Response:
    """Answer with one byte for each voxel, i fastest, and with the names of the values as JSON in the header X-Label-Names."""
    app = app_instance()
    image = known_image(app, image)
    with clear_errors():
        path = label_path(app.datastore(), image, TAG)
        if path is None or not path.exists():
            return Response(status_code=204, headers=UNCACHED)
        grid = app.datastore().image_grid(image)
        labels = read_mask(path, grid)
        names = unique_names(label_values(labels), label_names(app.datastore(), image, TAG))
    if max(names, default=0) > MAX_VALUE:
        raise HTTPException(422, f"The saved label has values above {MAX_VALUE}, which OHIF cannot show.")
    voxels = mask_to_viewer(grid, labels.astype(np.uint8)).tobytes(order="F")
    headers = {**UNCACHED, "X-Label-Names": json.dumps(names), "Content-Encoding": "gzip"}
    packer = zlib.compressobj(level=1, wbits=31)  # 31 stands for the format of gzip.
    return Response(packer.compress(voxels) + packer.flush(), media_type="application/octet-stream", headers=headers)


def _structure_as_viewed(record: dict, grid: Grid) -> dict:
    """Return what the page displays of a structure's record, with slices as OHIF counts them."""
    turned = record["axis"] == 2 and is_reversed(grid.affine)
    last, proposal = record["slices"] - 1, record["proposal"] or {}

    def viewed(t: int) -> int:
        return last - t if turned else t

    return {
        "label": record["label"], "volume_dice": record["volume_dice"],
        "annotated": sorted(viewed(t) for t in record["annotated"]),
        "expected_dice": record["expected_dice"][::-1] if turned else record["expected_dice"],
        "proposed": viewed(proposal["slice"]) if "slice" in proposal else None, "reason": proposal.get("reason", ""),
    }  # fmt: skip
