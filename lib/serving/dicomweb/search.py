"""Searches for studies, series and instances: the results in the DICOM JSON model, one after the other and only as far as they are needed."""

from collections.abc import Iterable, Iterator

from lib.common.errors import VolumeError
from lib.serving.dicomweb.index import by_study
from lib.serving.dicomweb.query import Query, tags
from lib.serving.dicomweb.series import SERIES_KEYWORDS, STUDY_KEYWORDS, Series, selected

# Attributes that results always have (DICOM PS3.18 tables 10.6.3-3 to 10.6.3-5), as far as an object has them.
_STUDY_TAGS = tags((*STUDY_KEYWORDS, "InstanceAvailability", "ModalitiesInStudy", "RetrieveURL", "NumberOfStudyRelatedSeries",
                    "NumberOfStudyRelatedInstances"))  # fmt: skip
_SERIES_TAGS = tags((*SERIES_KEYWORDS, "StudyInstanceUID", "InstanceAvailability", "RetrieveURL", "NumberOfSeriesRelatedInstances"))
_INSTANCE_TAGS = tags((
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceAvailability", "InstanceNumber", "Rows", "Columns",
    "BitsAllocated", "NumberOfFrames", "RetrieveURL",
))  # fmt: skip


def find_studies(series: Iterable[Series], query: Query, address: str) -> Iterator[dict]:
    """Yield the studies that match a query.

    Args:
        series: All series of the service.
        address: Address of the service, for the attribute RetrieveURL.
    """
    uid = query.value_of("StudyInstanceUID")
    for study_uid, members in by_study([s for s in series if not uid or s.study_uid in _uids(uid)]).items():
        summaries = [s.summary(exact=bool(uid)) for s in members]
        attributes = selected(summaries[0], STUDY_KEYWORDS) | {
            **_element("InstanceAvailability", "CS", "ONLINE"),
            **_element("ModalitiesInStudy", "CS", *sorted({m for s in summaries for m in _values(s, "Modality")})),
            **_element("RetrieveURL", "UR", f"{address}/studies/{study_uid}"),
            **_element("NumberOfStudyRelatedSeries", "IS", len(members)),
            **_element("NumberOfStudyRelatedInstances", "IS", sum(len(s.sop_uids) for s in members)),
        }
        if query.matches(attributes):
            yield query.choose(attributes, _STUDY_TAGS)


def find_series(series: Iterable[Series], query: Query, address: str, *, exact: bool) -> Iterator[dict]:
    """Yield the series that match a query.

    Args:
        series: The series of the service or of one study.
        exact: Whether voxels may be read for it (see `Series.summary`); they are, too, if the query names studies or series.
    """
    study_uid, series_uid = query.value_of("StudyInstanceUID"), query.value_of("SeriesInstanceUID")
    for s in _restricted(series, query):
        attributes = _series_attributes(s, address, exact=exact or bool(study_uid or series_uid))
        if query.matches(attributes):
            yield query.choose(attributes, _SERIES_TAGS)


def find_instances(series: Iterable[Series], query: Query, address: str) -> Iterator[dict]:
    """Yield the instances that match a query, among the given series. Series that cannot be read have none."""
    sop_uid = query.value_of("SOPInstanceUID")
    for s in _restricted(series, query):
        if sop_uid and not set(_uids(sop_uid)) & set(s.sop_uids):
            continue
        try:
            instances = s.metadata()
        except VolumeError:
            continue
        common = _series_attributes(s, address, exact=True)
        for uid, instance in zip(s.sop_uids, instances, strict=True):
            location = _element("RetrieveURL", "UR", f"{address}/studies/{s.study_uid}/series/{s.series_uid}/instances/{uid}")
            attributes = common | instance | location
            if query.matches(attributes):
                yield query.choose(attributes, _INSTANCE_TAGS)


def _restricted(series: Iterable[Series], query: Query) -> Iterator[Series]:
    """Yield those series that the identifiers in a query allow, before anything is read."""
    study_uid, series_uid = query.value_of("StudyInstanceUID"), query.value_of("SeriesInstanceUID")
    for s in series:
        if (not study_uid or s.study_uid in _uids(study_uid)) and (not series_uid or s.series_uid in _uids(series_uid)):
            yield s


def _series_attributes(series: Series, address: str, *, exact: bool) -> dict:
    return series.summary(exact=exact) | {
        **_element("InstanceAvailability", "CS", "ONLINE"),
        **_element("RetrieveURL", "UR", f"{address}/studies/{series.study_uid}/series/{series.series_uid}"),
        **_element("NumberOfSeriesRelatedInstances", "IS", len(series.sop_uids)),
    }


def _uids(text: str) -> list[str]:
    """Return the identifiers in a list that is separated by commas or backslashes."""
    return text.replace("\\", ",").split(",")


def _element(keyword: str, vr: str, *values) -> dict:
    """Return an attribute in the DICOM JSON model."""
    return {tags([keyword])[0]: {"vr": vr, "Value": list(values)}}


def _values(attributes: dict, keyword: str) -> list:
    return attributes.get(tags([keyword])[0], {}).get("Value", [])
