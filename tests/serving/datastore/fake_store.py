"""A DICOMweb store within the test's process."""

from pathlib import Path

import pydicom
import requests
from pydicom.dataset import Dataset

SEARCHED = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "StudyDate", "StudyTime")


class FakeStore:
    """A client of a store that holds the objects added to it.

    Attributes:
        failure: Exception that the next requests raise, or None.
        keeps: Whether the store keeps what it is sent, or only answers.
        fails_after: Number of objects after which a download is interrupted, or None.
    """

    base_url = "http://store"

    def __init__(self):
        self._session = requests.Session()
        self.objects: list[Dataset] = []
        self.failure, self.keeps, self.fails_after = None, True, None

    def add(self, path: Path) -> str:
        """Add a DICOM file, or those of a folder, and return the SeriesInstanceUID."""
        files = sorted(path.rglob("*.dcm")) if path.is_dir() else [path]
        self.objects += [pydicom.dcmread(file) for file in files]
        return str(self.objects[-1].SeriesInstanceUID)

    def segmentations(self) -> list[Dataset]:
        return [ds for ds in self.objects if ds.Modality == "SEG"]

    def set_http_retry_params(self, **_):
        pass

    def search_for_series(self, search_filters):
        self._fail()
        found = {}
        for ds in self.objects:
            if all(str(ds.get(k, "")) == v for k, v in search_filters.items()):
                header = Dataset()
                for keyword in SEARCHED:
                    if keyword in ds:
                        header[keyword] = ds[keyword]
                found[ds.SeriesInstanceUID] = header.to_json_dict()
        return list(found.values())

    def retrieve_series(self, study, series):
        self._fail()
        found = [ds for ds in self.objects if ds.SeriesInstanceUID == series and ds.StudyInstanceUID == study]
        if self.fails_after is not None:
            raise requests.ConnectionError("closed")
        return found

    def retrieve_series_metadata(self, study, series):
        self._fail()
        found = [ds for ds in self.objects if ds.SeriesInstanceUID == series]
        return [{tag: value for tag, value in ds.to_json_dict().items() if tag != "7FE00010"} for ds in found]

    def store_instances(self, datasets):
        self._fail()
        answer = Dataset()
        answer.ReferencedSOPSequence = []
        if self.keeps:
            self.objects += datasets
            for ds in datasets:
                item = Dataset()
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
                answer.ReferencedSOPSequence.append(item)
        return answer

    def _fail(self):
        if self.failure is not None:
            raise self.failure
