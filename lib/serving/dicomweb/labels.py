"""Requests for labels that name an image by its SeriesInstanceUID, as those of OHIF do."""

import io

import numpy as np
from starlette.datastructures import UploadFile

from lib.imaging.volume import Grid
from lib.serving.datastore.uploaded_labels import BARE_VOXELS
from lib.serving.dicomweb.index import SeriesIndex
from lib.serving.dicomweb.viewer_grid import is_reversed, mask_from_viewer


def name_image_by_id(app, fields: dict) -> None:
    """Replace the SeriesInstanceUID in the fields of a request to the datastore by the image's id.

    Bare voxels that come with it are counted as a viewer does; they are put into the order of the image.
    """
    for field in ("image", "id", "label"):
        if isinstance(fields.get(field), str):
            fields[field], by_series = SeriesIndex.of(app).resolve(fields[field])
            upload = fields.get("label")
            if by_series and isinstance(upload, UploadFile) and (upload.filename or "").endswith(BARE_VOXELS):
                _turn(upload, SeriesIndex.of(app).of_image(fields[field]).image.grid())


def _turn(upload: UploadFile, image: Grid) -> None:
    """Put the voxels of an upload into the order of the image. One with another number of voxels stays, and is refused later."""
    voxels = np.frombuffer(upload.file.read(), np.uint8)
    upload.file.seek(0)
    if is_reversed(image.affine) and voxels.size == np.prod(image.shape):
        mask = mask_from_viewer(image, voxels.reshape(image.shape, order="F"))
        upload.file = io.BytesIO(mask.tobytes(order="F"))
