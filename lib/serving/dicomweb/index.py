"""Which series the service offers: one for each image of a studies folder, known by identifiers that are looked up and never become paths."""

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial

from fastapi import HTTPException

from lib.common.errors import UserError, VolumeError
from lib.imaging.dicom.frames import DICOM_ERRORS
from lib.imaging.studies import Listing
from lib.imaging.study_images import StudyImage
from lib.imaging.volume import Volume
from lib.serving.datastore.folder import FolderDatastore
from lib.serving.dicomweb.file_series import FileSeries
from lib.serving.dicomweb.made_series import MadeSeries
from lib.serving.dicomweb.series import Series

logger = logging.getLogger(__name__)


class SeriesIndex:
    """The series of a studies folder, which follow the datastore's listing of images.

    Args:
        get_listing: Returns the listing of this moment.
        read: Returns the volume of an image by its id.
        get_digest: Returns a digest of the content of an image by its id, "" if it cannot be read.
    """

    def __init__(self, get_listing: Callable[[], Listing], read: Callable[[str], Volume], get_digest: Callable[[str], str]):
        self._get_listing, self._read, self._get_digest = get_listing, read, get_digest
        self._lock = threading.Lock()
        self._listing: Listing | None = None
        self._known: dict[tuple[str, str, bool], Series | None] = {}  # By image, its version, and whether its series is shared.
        self._by_image: dict[str, Series] = {}
        self._by_series: dict[str, Series] = {}

    @classmethod
    def of(cls, app) -> "SeriesIndex":
        """Return the index of an app, which the first call creates. It is empty if the app's images come from a DICOM store."""
        if not hasattr(app, "series_index"):
            def get_listing() -> Listing:
                store = app.datastore()
                return store.listing if isinstance(store, FolderDatastore) else Listing()

            def read(image: str) -> Volume:
                return app._infers["sam2"].read(app.datastore().get_image_uri(image))

            app.series_index = cls(get_listing, read, lambda image: app.datastore().image_digest(image))
        return app.series_index

    def all_series(self) -> list[Series]:
        """Return the series of all images, sorted by the images' ids."""
        self._refresh()
        return list(self._by_image.values())

    def of_image(self, image: str) -> Series | None:
        """Return the series of an image, or None if there is no such image or it cannot be read."""
        self._refresh()
        return self._by_image.get(image)

    def find(self, series_uid: str) -> Series | None:
        """Return the series with a SeriesInstanceUID, or None."""
        self._refresh()
        return self._by_series.get(series_uid)

    def resolve(self, name: str) -> tuple[str, bool]:
        """Return the id of the image that a client names, and whether it did so by the SeriesInstanceUID, as OHIF does."""
        if name in self._get_listing().images:
            return name, False
        series = self.find(name)
        return (name, False) if series is None else (series.image_id, True)

    def study(self, study_uid: str) -> list[Series]:
        """Return the series of a study; raise HTTPException 404 if there is none."""
        series = [s for s in self.all_series() if s.study_uid == study_uid]
        if not series:
            raise HTTPException(404, "There is no such study.")
        return series

    def series(self, study_uid: str, series_uid: str) -> Series:
        """Return a series of a study, or raise HTTPException 404."""
        series = self.find(series_uid)
        if series is None or series.study_uid != study_uid:
            raise HTTPException(404, "There is no such series in this study.")
        return series

    def instance(self, study_uid: str, series_uid: str, sop_uid: str) -> tuple[Series, int]:
        """Return a series and the index of an object in it, or raise HTTPException 404."""
        series = self.series(study_uid, series_uid)
        if sop_uid not in series.index_by_uid:
            raise HTTPException(404, "There is no such instance in this series.")
        return series, series.index_by_uid[sop_uid]

    def _refresh(self) -> None:
        """Follow the listing if it has changed. What was read of images that stayed the same is kept."""
        listing = self._get_listing()
        if listing is self._listing:
            return
        with self._lock:
            counts = Counter(i.stack.series_uid for i in listing.images.values() if i.stack is not None)
            known, by_image = {}, {}
            for image_id, image in sorted(listing.images.items()):
                is_shared = image.stack is not None and counts[image.stack.series_uid] > 1
                key = (image_id, image.version, is_shared)
                known[key] = self._known[key] if key in self._known else self._make(image_id, image, is_shared)
                if known[key] is not None:
                    by_image[image_id] = known[key]
            self._known, self._by_image = known, by_image
            self._by_series = {s.series_uid: s for s in by_image.values()}
            self._listing = listing

    def _make(self, image_id: str, image: StudyImage, is_shared: bool) -> Series | None:
        """Return the series of an image, or None if it cannot be read.

        Args:
            is_shared: Whether other images are of the same DICOM series: copies, or volumes that one series holds.
        """
        try:
            if image.stack is not None and not is_shared and (series := FileSeries.of(image_id, image)):
                return series
            if content := self._get_digest(image_id):
                return MadeSeries.of(image_id, image, image.grid().shape[2], content, partial(self._read, image_id))
            raise VolumeError("its files cannot be read.")
        except (UserError, *DICOM_ERRORS) as e:
            logger.warning("%s is not offered by DICOMweb: %s", image_id, e)
            return None


def by_study(series: list[Series]) -> dict[str, list[Series]]:
    """Return series grouped by their StudyInstanceUID."""
    groups = defaultdict(list)
    for s in series:
        groups[s.study_uid].append(s)
    return groups
