"""The datastore for a DICOM store, with a local cache."""

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path

import requests
from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import MONAILabelException
from urllib3.util import Retry

from lib.common.atomic_files import write_text
from lib.common.errors import UserError, VolumeError
from lib.imaging.dicom.frames import DICOM_ERRORS
from lib.imaging.dicom.reading import choose_stack
from lib.imaging.dicom.segmentations import read_segmentation
from lib.imaging.dicom.stacks import Stack, find_stacks
from lib.imaging.readers import read_grid, read_volume
from lib.imaging.volume import Grid
from lib.imaging.writers import write_image
from lib.serving.datastore.checks import checked_file_name
from lib.serving.datastore.dicom_labels import named_info, read_label, write_labels, write_labels_as_segmentation
from lib.serving.datastore.dicom_search import DicomSearch, StoredSegmentation, image_ids, series_uid_of
from lib.serving.datastore.folder import FINAL, UNSENT, FolderDatastore, file_entry

STORE_TIMEOUT_S = 60  # Default of how long the DICOM store may stay silent.
PARTIAL_SUFFIX = ".part"  # Ending of the folder of a series while it is being downloaded.
PARTIAL_MAX_AGE_S = 86400  # Older partial downloads were left behind by a killed server.
STACK_COUNT = ".stack_count"  # File beside the DICOM files of a series that holds several volumes; its text is their number.
IMAGE_ENDING = ".nrrd"  # Of cached images; such a file holds any affine, also that of a tilted gantry.

logger = logging.getLogger(__name__)
logging.getLogger("highdicom").setLevel(logging.WARNING)  # It logs several lines for each segmentation.


class CachedDicomDatastore(DICOMWebDatastore, FolderDatastore):
    """A DICOM store with a local cache.

    The id of an image is the SeriesInstanceUID; where a series holds several volumes, this is known once it was asked for, and the ids
    are then `UID#1`, `UID#2` and so on. A label that the store did not accept stays in the cache under the tag `UNSENT`.

    Methods that need the store raise requests.RequestException if it fails, and ImageNotFoundException for series that it does not have.
    """

    timeout_s: float = STORE_TIMEOUT_S

    def __init__(self, client, search_filter, *args, **kwargs):
        session = client._session
        session.request = partial(session.request, timeout=self.timeout_s)  # Without it, a silent store would block a thread forever.
        client.set_http_retry_params(retry=False)  # The client would retry for half a minute.
        for scheme in ("http://", "https://"):  # Instead, a connection is tried twice. No request that may change the store is repeated.
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=Retry(1, backoff_factor=0.3)))
        self._search = DicomSearch(client, search_filter)
        self._series_locks: dict[str, threading.Lock] = {}  # A series is downloaded and converted by one thread.
        self._refused: set[str] = set()  # Images that could not be read.
        super().__init__(client, search_filter, *args, **kwargs)
        for folder in self._images.glob(f".*{PARTIAL_SUFFIX}"):
            if time.time() - folder.stat().st_mtime > PARTIAL_MAX_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _images(self) -> Path:
        """The folder of cached images: a folder of DICOM files for each series, and a file for each image."""
        return Path(self._datastore.image_path())

    def image_digest(self, image_id):
        """Return a digest of the id, because UIDs are unique: DICOM allows no other content under them."""
        return hashlib.blake2b(image_id.encode(), digest_size=16).hexdigest()

    def list_images(self):
        """Return the ids of all images in the store."""
        counts = {file.parent.name: int(file.read_text()) for file in self._images.glob(f"*/{STACK_COUNT}")}
        return [image for series in self._search.image_series() for image in image_ids(series, counts.get(series, 1))]

    def get_labeled_images(self, label_tag=None, labels=None):
        """Return the ids of the images that have a segmentation in the store."""
        segmentations = self._newest_segmentations()
        return [image for image in self.list_images() if image in segmentations]

    def get_unlabeled_images(self, label_tag=None, labels=None):
        """Return the ids of the images that have no segmentation in the store, without those that could not be read."""
        segmentations = self._newest_segmentations()
        return [image for image in self.list_images() if image not in segmentations and image not in self._refused]

    def json(self):
        """Return MONAI Label's listing of images and labels, also of images that are not in the cache."""
        content = super().json()
        try:
            for image in self.list_images():
                entry = DataModel(ext=IMAGE_ENDING, info={"name": f"{image}{IMAGE_ENDING}"})
                content["objects"].setdefault(image, ImageLabelModel(image=entry).model_dump())
        except requests.RequestException as e:
            logger.warning("Only cached images are listed, because the DICOM store does not answer: %s", e)
        return content

    def get_image_uri(self, image_id):
        """Return the path of an image in the cache; download and convert it before if it is missing.

        Raises:
            VolumeError: The series is no volume, or holds several and the id does not say which.
        """
        image_id = checked_file_name(image_id)
        file = self._images / f"{image_id}{IMAGE_ENDING}"
        with self._series_locks.setdefault(series_uid_of(image_id), threading.Lock()):
            entry = self._datastore.objects.get(image_id)
            is_cached = entry is not None and entry.image.ext == IMAGE_ENDING and "SeriesInstanceUID" in entry.image.info
            if not (is_cached and file.exists()):
                self._convert(image_id, file)
        return str(file.resolve())

    def _convert(self, image_id: str, file: Path) -> None:
        """Read the DICOM files of an image, write it to `file` and list it; raise VolumeError if they are no volume."""
        series = self._download(series_uid_of(image_id), self._images)
        try:
            volume = read_volume(series.with_name(image_id))
        except VolumeError:
            self._refused.add(image_id)
            if (count := _count_stacks(series)) > 1:
                write_text(series / STACK_COUNT, str(count))
            else:  # The series may be repaired in the store, or may just be arriving there.
                shutil.rmtree(series, ignore_errors=True)
            raise
        self._refused.discard(image_id)
        write_image(volume, file)
        info = {**self._search.series_info(series.name), "warnings": list(volume.warnings)}
        with self._changing() as change:
            previous = change.model.objects.get(image_id)
            labels, known = (previous.labels, previous.image.info) if previous else ({}, {})
            if previous and previous.image.ext != IMAGE_ENDING:  # Earlier versions of the app cached NIfTI files.
                change.obsolete_files.append(self._images / self._filename(image_id, previous.image.ext))
            image = file_entry(file.name, IMAGE_ENDING, {**known, **info})
            change.model.objects[image_id] = ImageLabelModel(image=image, labels=labels)

    def _stack(self, image_id: str) -> Stack:
        """Return the DICOM frames of an image that was converted before."""
        return choose_stack(self._download(series_uid_of(image_id), self._images).with_name(image_id))

    def _download(self, series: str, cache: Path) -> Path:
        """Return the folder of a series in the folder `cache`; download it before if it is missing.

        The series appears there only when it is complete, because half a series could be taken for the whole of it.
        """
        destination = cache / checked_file_name(series)
        if destination.is_dir() and any(destination.iterdir()):
            return destination
        incomplete = cache / f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
        try:
            self._search.fetch_series(series, incomplete)
            with suppress(OSError):  # Another server may have been faster.
                os.replace(incomplete, destination)
        except OSError:  # Also the exceptions of requests are of this kind.
            raise
        except DICOM_ERRORS as e:
            raise VolumeError(f"The series {series} could not be fetched: its objects in the DICOM store are damaged.") from e
        finally:
            shutil.rmtree(incomplete, ignore_errors=True)
        return destination

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
        """Return the info of a label; a final one may have to be fetched from the store."""
        with suppress(UserError, MONAILabelException, requests.RequestException):
            self.get_label_uri(label_id, label_tag)
        return LocalDatastore.get_label_info(self, label_id, label_tag)

    def _newest_segmentations(self) -> dict[str, StoredSegmentation]:
        """Return the newest segmentation in the store of each image that has one."""
        ids: dict[str, list[str]] = {}
        for image in self.list_images():
            ids.setdefault(series_uid_of(image), []).append(image)
        newest = {}
        for segmentation in self._search.segmentations():
            images = ids.get(segmentation.image_series_uid, [])
            if len(images) > 1:  # The volume that holds most of the frames.
                stacks = find_stacks(self._images / segmentation.image_series_uid)
                shares = [sum((f.sop_instance_uid, f.number) in segmentation.frames for f in stack.frames) for stack in stacks]
                images = [images[shares.index(max(shares))]] if len(shares) == len(images) and any(shares) else []
            newest |= dict.fromkeys(images, segmentation)
        return newest

    def _fetch_segmentation(self, image: str, segmentation: StoredSegmentation) -> str:
        """Return the path of the final label of an image, made from a segmentation in the store unless that is in the cache.

        Raises:
            VolumeError: The segmentation does not fit the image.
        """
        self._init_from_datastore_file()  # Another server may have fetched it.
        label = self._datastore.label(image, FINAL)
        path = LocalDatastore.get_label_uri(self, image, FINAL)
        if label and label.info.get("SeriesInstanceUID") == segmentation.series_uid and os.path.exists(path):
            return path
        self.get_image_uri(image)
        stack = self._stack(image)
        labels, names = read_segmentation(self._download(segmentation.series_uid, Path(self._datastore.label_path(FINAL))), stack)
        rows = [{"name": name, "idx": value} for value, name in names.items()]
        with tempfile.TemporaryDirectory(prefix="sam2_label_") as folder:
            file = write_labels(labels, Grid(stack.shape, stack.affine), Path(folder, "label.nrrd"))
            info = {**self._search.series_info(segmentation.series_uid), "label_info": rows}
            FolderDatastore.save_label(self, image, str(file), FINAL, info)
        return LocalDatastore.get_label_uri(self, image, FINAL)

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
        image = self.image_grid(image_id)
        labels = read_label(label_filename, image)
        with tempfile.TemporaryDirectory(prefix="sam2_label_") as folder:
            if str(label_filename).endswith(".bin"):
                label_filename = str(write_labels(labels, image, Path(folder, "label.nrrd")))
            info = named_info(label_info, labels, label_filename)
            if tag != FINAL:
                return FolderDatastore.save_label(self, image_id, label_filename, tag, info)
            segmentation = write_labels_as_segmentation(
                labels, self._stack(image_id), info["label_info"], Path(folder, "label.dcm"), str(info.get("checkpoint") or "")
            )
            FolderDatastore.save_label(self, image_id, label_filename, UNSENT, info)
            try:
                info["SeriesInstanceUID"] = self._search.send(segmentation)
            except requests.RequestException as e:
                logger.warning("Label of %s not sent: %s", image_id, e)
                advice = f"The server keeps it under the tag {UNSENT}; submit it again later."
                raise HTTPException(502, f"The DICOM store did not take the label. {advice}") from e
            self._search.forget_segmentations()
            known = self.get_image_info(image_id)
            info |= {field: known.get(field) for field in ("Modality", "PatientID", "StudyInstanceUID")}
            FolderDatastore.save_label(self, image_id, label_filename, FINAL, info)
        self.remove_label(image_id, UNSENT, reason="")
        return image_id

    def image_grid(self, image_id: str) -> Grid:
        """Return the voxel grid of an image, which is fetched from the store if needed; errors are those of `get_image_uri`."""
        return read_grid(self.get_image_uri(image_id))


def _count_stacks(series: Path) -> int:
    """Return the number of volumes in the folder of a series; 0 if it cannot be read."""
    try:
        return len(find_stacks(series))
    except DICOM_ERRORS:
        return 0
