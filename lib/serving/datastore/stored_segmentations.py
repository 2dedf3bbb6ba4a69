"""What is known of the segmentations in a DICOM store: which images they belong to, what they hold, and who made them when."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

from pydicom.dataset import Dataset

from lib.imaging.dicom.frames import DICOM_ERRORS
from lib.imaging.dicom.segmentations import SOFTWARE_VERSION
from lib.imaging.dicom.stacks import find_stacks

REASON = "an earlier segmentation in the DICOM store"  # In the history of an image's labels.

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredSegmentation:
    """A DICOM SEG in the store.

    Attributes:
        series_uid: SeriesInstanceUID of the segmentation.
        image_series_uid: SeriesInstanceUID of the images that it refers to.
        frames: The frames that it refers to, as pairs (SOPInstanceUID, number of the frame from 1).
        time: Date and time of its content, as text that sorts: "20261126 192600.25".
        structures: Names of its segments.
        checkpoint: Version of the algorithm that made the first segment, or "". This app writes the name of its checkpoint there.
        creator: Who made its content, or "".
    """

    series_uid: str
    image_series_uid: str
    frames: frozenset[tuple[str, int]]
    time: str
    structures: tuple[str, ...] = ()
    checkpoint: str = ""
    creator: str = ""

    def to_history_item(self) -> dict:
        """Return what the history of an image's labels says of it, see `lib.serving.datastore.history.LabelHistory.items`."""
        seconds = None
        with suppress(ValueError, OverflowError):
            seconds = int(_parse_time(self.time).timestamp())  # Taken as the local time of this machine.
        return {
            "name": self.series_uid, "tag": "final", "time": seconds, "client": "", "user": self.creator,
            "checkpoint": self.checkpoint, "structures": list(self.structures), "digest": "", "retired": None, "reason": REASON,
            "series": self.series_uid, "restorable": True,
        }  # fmt: skip


def series_uid_of(image_id: str) -> str:
    """Return the SeriesInstanceUID in the id of an image.

    >>> series_uid_of("1.2.3#2"), image_ids("1.2.3", 2), image_ids("1.2.4", 1)
    ('1.2.3', ['1.2.3#1', '1.2.3#2'], ['1.2.4'])
    """
    return image_id.partition("#")[0]


def image_ids(series_uid: str, count: int) -> list[str]:
    """Return the ids of the images in a series with so many volumes."""
    return [series_uid] if count == 1 else [f"{series_uid}#{n}" for n in range(1, count + 1)]


def describe_segmentation(metadata: list[dict], series_uid: str) -> StoredSegmentation | None:
    """Return what the DICOM JSON of a segmentation says about it, or None if it does not name its images."""
    try:
        dataset = Dataset.from_json({tag: value for tag, value in metadata[0].items() if "BulkDataURI" not in value})
        image_series = dataset.ReferencedSeriesSequence[0]
        frames = {
            (str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1))
            for groups in dataset.get("PerFrameFunctionalGroupsSequence") or []
            for derivation in groups.get("DerivationImageSequence") or []
            for source in derivation.get("SourceImageSequence") or []
        }
        if not frames:
            frames = {(str(i.ReferencedSOPInstanceUID), 1) for i in image_series.get("ReferencedInstanceSequence") or []}
        segments = dataset.get("SegmentSequence") or []
        algorithms = (a for segment in segments for a in segment.get("SegmentationAlgorithmIdentificationSequence") or [])
        versions = [str(algorithm.get("AlgorithmVersion") or "") for algorithm in algorithms]
        return StoredSegmentation(
            series_uid, str(image_series.SeriesInstanceUID), frozenset(frames),
            time=content_time(dataset),
            structures=tuple(str(segment.get("SegmentLabel") or "") for segment in segments),
            checkpoint=versions[0] if versions and versions[0] != SOFTWARE_VERSION else "",
            creator=str(dataset.get("ContentCreatorName") or ""),
        )  # fmt: skip
    except DICOM_ERRORS as e:
        logger.warning("The segmentation %s is ignored, because it does not name its images: %s", series_uid, e)
        return None


def segmentations_by_image(
    segmentations: Iterable[StoredSegmentation], images: Iterable[str], cache: Path
) -> dict[str, list[StoredSegmentation]]:  # fmt: skip
    """Return the segmentations of each image that has some, in the given order.

    Args:
        images: Ids of the images in the store.
        cache: Folder with the downloaded series of images. A series with several volumes is there, or its volumes would not be known.
    """
    ids: dict[str, list[str]] = {}
    for image in images:
        ids.setdefault(series_uid_of(image), []).append(image)
    found: dict[str, list[StoredSegmentation]] = {}
    for segmentation in segmentations:
        volumes = ids.get(segmentation.image_series_uid, [])
        if len(volumes) > 1:
            number = _volume_of(segmentation, cache / segmentation.image_series_uid, len(volumes))
            volumes = [] if number is None else [volumes[number]]
        for image in volumes:
            found.setdefault(image, []).append(segmentation)
    return found


@lru_cache(1024)  # Stored objects do not change, and reading the headers of a series takes a while.
def _volume_of(segmentation: StoredSegmentation, series: Path, count: int) -> int | None:
    """Return which of the `count` volumes in the folder of a series holds most of the frames of a segmentation, or None."""
    stacks = find_stacks(series)
    shares = [sum((f.sop_instance_uid, f.number) in segmentation.frames for f in stack.frames) for stack in stacks]
    return shares.index(max(shares)) if len(shares) == count and any(shares) else None


def date_content_after(segmentation: Dataset, time: str) -> None:
    """Make the content of a new segmentation at least a second younger than a time, see `StoredSegmentation.time`.

    The newest segmentation of an image counts, and the clock of whoever wrote the last one may be ahead.
    """
    with suppress(ValueError, OverflowError):
        earliest = _parse_time(time) + timedelta(seconds=1)
        if content_time(segmentation) < f"{earliest:%Y%m%d %H%M%S}":
            segmentation.ContentDate, segmentation.ContentTime = f"{earliest:%Y%m%d}", f"{earliest:%H%M%S}"


def content_time(segmentation: Dataset) -> str:
    """Return date and time of a segmentation's content as text that sorts."""
    return f"{segmentation.get('ContentDate') or ''} {segmentation.get('ContentTime') or ''}"


def _parse_time(text: str) -> datetime:
    """Return the whole seconds of a `content_time`, or raise ValueError."""
    return datetime.strptime(text.partition(".")[0], "%Y%m%d %H%M%S")
