"""A DICOMweb store within the test's process."""

import io
from pathlib import Path

import pydicom
import requests
from pydicom.dataset import Dataset

SEARCHED = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "StudyDate", "StudyTime")


class FakeSession(requests.Session):
    """Answers requests for the objects of a series."""

    def __init__(self, store: "FakeStore"):
        super().__init__()
        self._store = store

    def get(self, url, headers):
        self._store.check()
        answer = requests.Response()
        answer.status_code = 406 if "transfer-syntax" in headers["Accept"] else 200
        answer.objects = [ds for ds in self._store.objects if url.endswith(f"/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}")]
        return answer


class FakeStore:
    """A client of a store that holds the objects added to it.

    Attributes:
        failure: Exception that the next requests raise, or None.
        keeps: Whether the store keeps what it is sent, or only answers.
        fails_after: Number of objects after which a download is interrupted, or None.
    """

    base_url, wado_url_prefix = "http://store", None

    def __init__(self):
        self._session = FakeSession(self)
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
        self.check()
        found = {}
        for ds in self.objects:
            if all(str(ds.get(k, "")) == v for k, v in search_filters.items()):
                header = Dataset()
                for keyword in SEARCHED:
                    if keyword in ds:
                        header[keyword] = ds[keyword]
                found[ds.SeriesInstanceUID] = header.to_json_dict()
        return list(found.values())

    def _decode_multipart_message(self, response, stream):
        for count, ds in enumerate(response.objects):
            if count == self.fails_after:
                raise requests.ConnectionError("closed")
            content = io.BytesIO()
            ds.save_as(content)
            yield content.getvalue()

    def retrieve_series_metadata(self, study, series):
        self.check()
        found = [ds for ds in self.objects if ds.SeriesInstanceUID == series]
        return [{tag: value for tag, value in ds.to_json_dict().items() if tag != "7FE00010"} for ds in found]

    def store_instances(self, datasets):
        self.check()
        answer = Dataset()
        answer.ReferencedSOPSequence = []
        if self.keeps:
            self.objects += datasets
            for ds in datasets:
                item = Dataset()
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
                answer.ReferencedSOPSequence.append(item)
        return answer

    def check(self):
        """Raise the failure, if there is one."""
        if self.failure is not None:
            raise self.failure
