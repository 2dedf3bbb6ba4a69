"""The datastore for a DICOM store: its segmentations are the labels of its images."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import requests
from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.exception import MONAILabelException

from lib.common.errors import UserError
from lib.imaging.dicom.segmentations import read_segmentation
from lib.imaging.volume import Grid
from lib.serving.datastore.checks import checked_file_name
from lib.serving.datastore.dicom_images import CachedDicomImages
from lib.serving.datastore.dicom_labels import write_labels_as_segmentation
from lib.serving.datastore.folder import FINAL, UNSENT, FolderDatastore
from lib.serving.datastore.history import SERIES, restoration
from lib.serving.datastore.stored_segmentations import StoredSegmentation, segmentations_by_image
from lib.serving.datastore.uploaded_labels import checked_label, write_labels

logger = logging.getLogger(__name__)
logging.getLogger("highdicom").setLevel(logging.WARNING)  # It logs several lines for each segmentation.


class CachedDicomDatastore(CachedDicomImages):
    """A DICOM store with a local cache. A label that the store did not accept stays in the cache under the tag `UNSENT`.

    Methods that need the store raise requests.RequestException if it fails, and ImageNotFoundException for series that it does not have.
    """

    def get_labeled_images(self, label_tag=None, labels=None):
        """Return the ids of the images that have a segmentation in the store."""
        segmentations = self._newest_segmentations()
        return [image for image in self.list_images() if image in segmentations]

    def get_unlabeled_images(self, label_tag=None, labels=None):
        """Return the ids of the images that have no segmentation in the store, without those that could not be read."""
        segmentations = self._newest_segmentations()
        return [image for image in self.list_images() if image not in segmentations and image not in self._refused]

    def get_label_uri(self, label_id, label_tag, image_id=""):
        """Return the path of a label in the cache, or "" if there is none. A final one may have to be fetched from the store.

        Args:
            label_id: Id of the image, or SeriesInstanceUID of a segmentation in the store.
        """
        label_id, tag = checked_file_name(label_id), checked_file_name(label_tag)
        path = LocalDatastore.get_label_uri(self, label_id, tag)
        if tag != FINAL:
            return path
        try:
            segmentations = self._newest_segmentations()
        except requests.RequestException:
            if path:
                return path  # The cached label is better than none while the store does not answer.
            raise
        for image, segmentation in segmentations.items():
            if label_id in (image, segmentation.series_uid):
                return self._fetch_segmentation(image, segmentation)
        return path

    def get_labels_by_image_id(self, image_id):
        """Return {tag: id} of an image's labels, also of a final one that is in the store and not in the cache yet."""
        labels = LocalDatastore.get_labels_by_image_id(self, image_id)
        with suppress(requests.RequestException):
            if image_id in self._newest_segmentations():
                labels = {**labels, FINAL: image_id}
        return labels

    def get_label_info(self, label_id, label_tag):
        """Return the info of a label; a final one may have to be fetched from the store. One that cannot be used has none."""
        try:
            self.get_label_uri(label_id, label_tag)
        except UserError as e:
            logger.warning("The label %s of %s is not used: %s", label_tag, label_id, e)
            return {}  # The cache may have an older one.
        except (MONAILabelException, requests.RequestException):
            pass
        return LocalDatastore.get_label_info(self, label_id, label_tag)

    def _segmentations(self) -> dict[str, list[StoredSegmentation]]:
        """Return the segmentations in the store of each image that has some, the oldest first."""
        return segmentations_by_image(self._search.segmentations(), self.list_images(), self._images)

    def _newest_segmentations(self) -> dict[str, StoredSegmentation]:
        """Return the newest segmentation in the store of each image that has one."""
        return {image: segmentations[-1] for image, segmentations in self._segmentations().items()}

    def _fetch_segmentation(self, image: str, segmentation: StoredSegmentation) -> str:
        """Return the path of the final label of an image, made from a segmentation in the store unless that is in the cache.

        Raises:
            VolumeError: The segmentation does not fit the image.
        """
        self._init_from_datastore_file()  # Another server may have fetched it.
        label = self._datastore.label(image, FINAL)
        path = LocalDatastore.get_label_uri(self, image, FINAL)
        if label and label.info.get(SERIES) == segmentation.series_uid and os.path.exists(path):
            return path
        with self._as_label(image, segmentation) as (file, info):
            info |= self._search.series_info(segmentation.series_uid)
            FolderDatastore.save_label(self, image, file, FINAL, info)
        return LocalDatastore.get_label_uri(self, image, FINAL)

    @contextmanager
    def _as_label(self, image: str, segmentation: StoredSegmentation) -> Iterator[tuple[str, dict]]:
        """Yield the path of a temporary label map that is made from a segmentation in the store, and its info with the names.

        Raises:
            VolumeError: The segmentation does not fit the image.
        """
        self.get_image_uri(image)
        stack = self._stack(image)
        series = self._search.fetch_series(segmentation.series_uid, Path(self._datastore.label_path(FINAL)))
        labels, names = read_segmentation(series, stack)
        rows = [{"name": name, "idx": value} for value, name in names.items()]
        info = {"label_info": rows, "checkpoint": segmentation.checkpoint, "user": segmentation.creator}
        with tempfile.TemporaryDirectory(prefix="sam2_label_") as folder:
            yield str(write_labels(labels, Grid(stack.shape, stack.affine), Path(folder, "label.nrrd"))), info

    def label_history(self, image_id):
        """Return the descriptions of an image's earlier labels, of the cache and of older segmentations in the store, the newest first."""
        items = super().label_history(image_id)
        series = {item["series"] for item in items}
        with suppress(requests.RequestException):  # The labels of the cache are better than none while the store does not answer.
            older = self._segmentations().get(image_id, [])[:-1]
            items += [s.to_history_item() for s in reversed(older) if s.series_uid not in series]
        return sorted(items, key=lambda item: item.get("time") or 0, reverse=True)

    def restore_label(self, image_id, name, by):
        """Make an earlier label the present one again, also an older segmentation in the store, which is sent anew; return its tag."""
        segmentation = next((s for s in self._segmentations().get(image_id, []) if s.series_uid == name), None)
        if segmentation is None:
            return super().restore_label(image_id, name, by)
        with self._as_label(image_id, segmentation) as (file, info):
            self.save_label(image_id, file, FINAL, {**info, **restoration(name, by)})
        return FINAL

    def remove_label(self, label_id, label_tag, reason="removed"):
        """Remove a label of the cache, or raise UserError for one that is in the store, from where it would come back."""
        if label_tag == FINAL and (segmentation := self._newest_segmentations().get(label_id)):
            raise UserError(f"The label is in the DICOM store: delete the series {segmentation.series_uid} there.")
        super().remove_label(label_id, label_tag, reason)

    def _download_labeled_data(self):
        """Bring the cache's final labels to the state of the store: fetch new ones and remove those that it no longer has."""
        self._search.forget_segmentations()
        segmentations = self._newest_segmentations()
        for image in set(LocalDatastore.get_labeled_images(self)) - set(segmentations):
            logger.info("The label of %s is no longer in the DICOM store: removing it from the cache.", image)
            self.remove_label(image, FINAL)
        done: set[str] = set()
        # That a series holds several volumes becomes known when it is fetched; they are images of their own then, with labels.
        while waiting := {i: segmentation for i, segmentation in self._newest_segmentations().items() if i not in done}:
            done |= waiting.keys()
            for image, segmentation in waiting.items():
                try:
                    self._fetch_segmentation(image, segmentation)
                except (UserError, MONAILabelException) as e:
                    logger.warning("The label of %s is left out: %s", image, e)

    def save_label(self, image_id, label_filename, label_tag, label_info, label_id=""):
        """Save a label that fits its image, and send a final one to the DICOM store as DICOM SEG.

        Raises:
            VolumeError: The label does not fit or is damaged, or a final one is empty. Nothing is saved or sent.
            HTTPException: 502, the DICOM store did not accept a final label.
        """
        image_id, tag = checked_file_name(image_id), checked_file_name(label_tag)
        with checked_label(label_filename, self.image_grid(image_id), label_info) as (file, labels, info):
            if tag == FINAL:
                self._submit(image_id, file, labels, info)
            else:
                FolderDatastore.save_label(self, image_id, file, tag, info)
        return image_id

    def _submit(self, image_id: str, file: str, labels: np.ndarray, info: dict) -> None:
        """Send a label to the DICOM store, and keep it in the cache; errors are those of `save_label`."""
        version = str(info.get("checkpoint") or "")
        with tempfile.TemporaryDirectory(prefix="sam2_label_") as folder:
            segmentation = write_labels_as_segmentation(
                labels, self._stack(image_id), info["label_info"], Path(folder, "label.dcm"), version
            )  # fmt: skip
            FolderDatastore.save_label(self, image_id, file, UNSENT, info)
            try:
                newest = self._newest_segmentations().get(image_id)
                info[SERIES] = self._search.send(segmentation, after=newest.time if newest else "")
            except requests.RequestException as e:
                logger.warning("Label of %s not sent: %s", image_id, e)
                advice = f"The server keeps it under the tag {UNSENT}; submit it again later."
                raise HTTPException(502, f"The DICOM store did not take the label. {advice}") from e
        self._search.forget_segmentations()
        known = self.get_image_info(image_id)
        info |= {field: known.get(field) for field in ("Modality", "PatientID", "StudyInstanceUID")}
        FolderDatastore.save_label(self, image_id, file, FINAL, info)
        self.remove_label(image_id, UNSENT, reason="")
