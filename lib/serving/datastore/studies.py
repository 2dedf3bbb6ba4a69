"""The datastore of a studies folder: labels that fit their images."""

import logging
import os
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from lib.common.errors import UserError, VolumeError
from lib.imaging.dicom.stacks import Stack
from lib.serving.datastore.checks import checked_file_name, misfit
from lib.serving.datastore.dicom_labels import write_labels_as_segmentation
from lib.serving.datastore.folder import FINAL
from lib.serving.datastore.studies_images import StudiesImages
from lib.serving.datastore.uploaded_labels import checked_label

logger = logging.getLogger(__name__)


class StudiesDatastore(StudiesImages):
    """A studies folder with its labels. Methods that need an image raise UserError with the reason if that cannot be used."""

    def __init__(self, *args, **kwargs):
        self._misfits: dict[tuple, str] = {}  # Why a label of a certain version does not fit its image, or "".
        super().__init__(*args, **kwargs)

    def get_labels_by_image_id(self, image_id):
        """Return {tag: id} of the labels of an image's present content."""
        self._notice_changes(image_id)
        return super().get_labels_by_image_id(image_id)

    def get_label_uri(self, label_id, label_tag):
        """Return the path of a label, or "" if there is none.

        Raises:
            UserError: The label does not fit its image.
        """
        self._notice_changes(label_id)
        path, image = super().get_label_uri(label_id, label_tag), self.listing.images.get(label_id)
        if image is None or not path:
            return path
        with suppress(OSError, VolumeError):  # Who reads an image that is damaged gets the reason.
            stat = os.stat(path)
            key = (image.version, path, stat.st_size, stat.st_mtime_ns)
            if key not in self._misfits:
                self._misfits[key] = misfit(Path(path), image.grid())
            if reason := self._misfits[key]:
                logger.warning("The label %s of %s is not used: %s", label_tag, label_id, reason)
                raise UserError(f"The label {label_tag} of {label_id} was made for another image: {reason}")
        return path

    def save_label(self, image_id, label_filename, label_tag, label_info):
        """Save a label that fits its image, and return the image's id. A label of a DICOM image is also written as DICOM SEG beside it.

        Raises:
            UserError: It does not fit or cannot be read; nothing is changed.
        """
        image = self._known_image(checked_file_name(image_id))
        with checked_label(label_filename, image.grid(), label_info) as (file, labels, info):
            super().save_label(image_id, file, label_tag, info)
        if image.stack is not None:
            self._write_segmentation(image_id, label_tag, labels, image.stack, info)
        return image_id

    def _write_segmentation(self, image_id: str, tag, labels: np.ndarray, stack: Stack, info: dict) -> None:
        """Write a label of a DICOM image as DICOM SEG, which refers to the image's files; log why it cannot be written."""
        path = self._segmentation_file(image_id, tag)
        try:
            path.unlink(missing_ok=True)
            write_labels_as_segmentation(labels, stack, info["label_info"], path, str(info.get("checkpoint") or ""))
        except (OSError, VolumeError) as e:
            logger.warning("No DICOM SEG was made of the label of %s: %s", image_id, e)

    def _segmentation_file(self, image_id: str, tag) -> Path:
        return Path(self._datastore.label_path(checked_file_name(tag)), f"{image_id}.dcm")

    def remove_label(self, label_id, label_tag, reason="removed"):
        """Remove a label, also as DICOM SEG; do nothing if there is none."""
        super().remove_label(label_id, label_tag, reason)
        self._segmentation_file(checked_file_name(label_id), label_tag).unlink(missing_ok=True)

    def datalist(self, full_path=True):
        """Return {"image": path, "label": path} for each image with a final label; those that cannot be used are logged."""
        return [{"image": image_file, "label": label_file} for _, image_file, label_file in self._final_labels()]

    def get_dataset_archive(self, limit_cases):
        """Return the path of a temporary ZIP archive with the images, their final labels and the datastore's JSON."""
        with tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file, zipfile.ZipFile(file, "w") as archive:
            for image, image_file, label_file in self._final_labels()[: limit_cases or None]:
                archive.write(image_file, f"image/{self.get_image_info(image)['name']}")
                archive.write(label_file, f"label/{Path(label_file).name}")
            archive.writestr("metadata.json", self._datastore.model_dump_json(exclude={"base_path"}))
        return file.name

    def _final_labels(self) -> list[tuple[str, str, str]]:
        """Return id, image file and label file of each image with a final label; those that cannot be used are logged."""
        rows = []
        for image in self.get_labeled_images():
            try:
                rows.append((image, self.get_image_uri(image), self.get_label_uri(image, FINAL)))
            except UserError as e:
                logger.warning("Left out %s and its label: %s", image, e)
        return [row for row in rows if all(row)]
