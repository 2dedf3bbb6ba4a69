"""Storing of DICOM SEG that clients send: each becomes the final label of the image whose slices it marks."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import pydicom

from lib.common.errors import UserError
from lib.imaging.dicom.frames import DICOM_ERRORS, read_dataset
from lib.imaging.dicom.segmentations import read_segmentation
from lib.imaging.dicom.stacks import Stack
from lib.serving.datastore.uploaded_labels import write_labels
from lib.serving.dicomweb.index import SeriesIndex
from lib.serving.dicomweb.series import Series

FINAL = "final"
# Reasons of failures (DICOM PS3.18 table I.2-2).
PROCESSING_FAILURE, CLASS_NOT_SUPPORTED, NOT_UNDERSTOOD = 0x0110, 0x0122, 0xC000
COERCION = 0xB000  # The object was changed: it became a label map.
_SEG_CLASSES = "1.2.840.10008.5.1.4.1.1.66."

logger = logging.getLogger(__name__)


class _Refused(Exception):
    """An object is not stored; the arguments are the sentence and the reason's number."""


def store_objects(files: list[bytes], study_uid: str, index: SeriesIndex, datastore, address: str) -> tuple[dict, int]:
    """Store DICOM files and return the answer in the DICOM JSON model with its HTTP status: 200, or 202 or 409 if some or all failed.

    Args:
        study_uid: Study to which all objects must belong, or "".
        index: The series of the service.
        datastore: Datastore that takes the labels.
        address: Address of the service.
    """
    stored, failed = [], []
    for content in files:
        attributes: dict = {}
        try:
            stored.append(_store(content, study_uid, index, datastore, address, attributes))
        except _Refused as e:
            message, reason = e.args
            logger.info("Not stored: %s", message)
            failed.append(attributes | {"00081197": {"vr": "US", "Value": [reason]}, "00000902": {"vr": "LO", "Value": [message[:64]]}})
    answer = {tag: {"vr": "SQ", "Value": items} for tag, items in (("00081198", failed), ("00081199", stored)) if items}
    return answer, 200 if not failed else 202 if stored else 409


def _store(content: bytes, study_uid: str, index: SeriesIndex, datastore, address: str, attributes: dict) -> dict:
    """Store one file and return its item of the answer; fill `attributes` with its identifiers, or raise `_Refused`."""
    with tempfile.TemporaryDirectory(prefix="sam2_seg_") as folder:
        file = Path(folder, "segmentation.dcm")
        file.write_bytes(content)
        try:
            dataset = read_dataset(file, stop_before_pixels=True)
            if dataset is None:
                raise pydicom.errors.InvalidDicomError
            class_uid, uid = str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)
            attributes |= {"00081150": {"vr": "UI", "Value": [class_uid]}, "00081155": {"vr": "UI", "Value": [uid]}}
            if not class_uid.startswith(_SEG_CLASSES):
                raise _Refused("Only segmentations (DICOM SEG) are stored here.", CLASS_NOT_SUPPORTED)
            if study_uid and str(dataset.StudyInstanceUID) != study_uid:
                raise _Refused("The object belongs to another study.", PROCESSING_FAILURE)
            referenced = [str(item.SeriesInstanceUID) for item in dataset.ReferencedSeriesSequence]
        except DICOM_ERRORS as e:
            raise _Refused("The object is damaged or incomplete.", NOT_UNDERSTOOD) from e
        series = next((s for uid in referenced if (s := index.find(uid))), None)
        if series is None:
            raise _Refused("The object refers to no series of this server.", PROCESSING_FAILURE)
        try:
            save_segmentation(file, series, datastore)
        except UserError as e:
            raise _Refused(str(e), PROCESSING_FAILURE) from e
    location = f"{address}/studies/{series.study_uid}/series/{series.series_uid}"
    return attributes | {
        "00081190": {"vr": "UR", "Value": [location]}, "00081196": {"vr": "US", "Value": [COERCION]},
    }  # fmt: skip


def save_segmentation(file: Path, series: Series, datastore) -> None:
    """Save a DICOM SEG as the final label of the image of a series, on the image's own grid, with the names of its segments.

    Raises:
        UserError: It does not fit the image, or the datastore refuses it.
        OSError: The folder cannot be written to.
    """
    grid = series.image.grid()
    labels, names = read_segmentation(file, Stack(series.series_uid, "", (), tuple(grid.shape), np.asarray(grid.affine, float)))
    path = write_labels(labels, grid, file.with_name("label.nrrd"))
    rows = [{"name": name, "idx": value} for value, name in sorted(names.items())]
    datastore.save_label(series.image_id, str(path), FINAL, {"label_info": rows})
