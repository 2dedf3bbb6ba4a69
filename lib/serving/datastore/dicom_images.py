"""The images of a DICOM store, with a local cache."""

import hashlib
import logging
import shutil
import threading
from functools import partial
from pathlib import Path

import requests
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel
from urllib3.util import Retry

from lib.common.atomic_files import write_text
from lib.common.errors import VolumeError
from lib.imaging.dicom.frames import DICOM_ERRORS
from lib.imaging.dicom.reading import choose_stack
from lib.imaging.dicom.stacks import Stack, find_stacks
from lib.imaging.readers import read_grid, read_volume
from lib.imaging.volume import Grid
from lib.imaging.writers import write_image
from lib.serving.datastore.checks import checked_file_name
from lib.serving.datastore.dicom_search import DicomSearch, remove_partial_downloads
from lib.serving.datastore.folder import FolderDatastore, file_entry
from lib.serving.datastore.history import SERIES
from lib.serving.datastore.stored_segmentations import image_ids, series_uid_of

STORE_TIMEOUT_S = 60  # Default of how long the DICOM store may stay silent.
STACK_COUNT = ".stack_count"  # File beside the DICOM files of a series that holds several volumes; its text is their number.
IMAGE_ENDING = ".nrrd"  # Of cached images; such a file holds any affine, also that of a tilted gantry.

logger = logging.getLogger(__name__)


class CachedDicomImages(DICOMWebDatastore, FolderDatastore):
    """The images of a DICOM store, which are downloaded and converted when they are asked for.

    The id of an image is the SeriesInstanceUID; where a series holds several volumes, this is known once it was asked for, and the ids
    are then `UID#1`, `UID#2` and so on.

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
        remove_partial_downloads(self._images)

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
            is_cached = entry is not None and entry.image.ext == IMAGE_ENDING and SERIES in entry.image.info
            if not (is_cached and file.exists()):
                self._convert(image_id, file)
        return str(file.resolve())

    def _convert(self, image_id: str, file: Path) -> None:
        """Read the DICOM files of an image, write it to `file` and list it; raise VolumeError if they are no volume."""
        series = self._search.fetch_series(series_uid_of(image_id), self._images)
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
        return choose_stack(self._search.fetch_series(series_uid_of(image_id), self._images).with_name(image_id))

    def image_grid(self, image_id: str) -> Grid:
        """Return the voxel grid of an image, which is fetched from the store if needed; errors are those of `get_image_uri`."""
        return read_grid(self.get_image_uri(image_id))


def _count_stacks(series: Path) -> int:
    """Return the number of volumes in the folder of a series; 0 if it cannot be read."""
    try:
        return len(find_stacks(series))
    except DICOM_ERRORS:
        return 0
