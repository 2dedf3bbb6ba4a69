"""The routes of the DICOMweb service, below /dicomweb. They ask for the same rights as MONAI Label's own.

All but the one that stores are plain functions, which FastAPI runs in its thread pool.
"""

import logging
import os
from collections.abc import Iterable
from itertools import islice

import anyio
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.utils.app import app_instance
from pydicom.uid import ExplicitVRLittleEndian

from lib.serving.datastore.folder import FolderDatastore
from lib.serving.dicomweb import multipart
from lib.serving.dicomweb.index import SeriesIndex
from lib.serving.dicomweb.query import Query
from lib.serving.dicomweb.search import find_instances, find_series, find_studies
from lib.serving.dicomweb.series import Series
from lib.serving.dicomweb.storage import store_objects
from lib.serving.dicomweb.uids import is_uid
from lib.serving.web.http_errors import clear_errors

logger = logging.getLogger(__name__)

PREFIX = "/dicomweb"
ALLOWED = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
MOST_RESULTS = 5000
MOST_STORED_BYTES = 1 << 31
JSON, PLAIN_JSON = "application/dicom+json", "application/json"
DICOM, PIXELS = 'multipart/related; type="application/dicom"', 'multipart/related; type="application/octet-stream"'
UNCACHED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}  # No images of patients on the disks of browsers.
STUDY, SERIES, INSTANCE = "/studies/{study}", "/studies/{study}/series/{series}", "/studies/{study}/series/{series}/instances/{instance}"

router = APIRouter(prefix=PREFIX, dependencies=[ALLOWED], tags=["DICOMweb"])


@router.get("/studies", summary="QIDO-RS: search for studies")
def search_studies(request: Request) -> Response:
    query = _query(request)
    return _results(request, query, find_studies(_index().all_series(), query, _address(request)))


@router.get("/series", summary="QIDO-RS: search for series")
@router.get(STUDY + "/series", summary="QIDO-RS: search for series of a study")
def search_series(request: Request, study: str = "") -> Response:
    query, series = _query(request), _series_below(study)
    return _results(request, query, find_series(series, query, _address(request), exact=bool(study)))


@router.get("/instances", summary="QIDO-RS: search for instances")
@router.get(STUDY + "/instances", summary="QIDO-RS: search for instances of a study")
@router.get(SERIES + "/instances", summary="QIDO-RS: search for instances of a series")
def search_instances(request: Request, study: str = "", series: str = "") -> Response:
    query = _query(request)
    return _results(request, query, find_instances(_series_below(study, series), query, _address(request)))


@router.get(STUDY + "/metadata", summary="WADO-RS: attributes of all instances of a study")
@router.get(SERIES + "/metadata", summary="WADO-RS: attributes of all instances of a series")
@router.get(INSTANCE + "/metadata", summary="WADO-RS: attributes of an instance")
def metadata(request: Request, study: str, series: str = "", instance: str = "") -> Response:
    media_type, _ = _accepted(request, [JSON, PLAIN_JSON])
    with clear_errors():
        attributes = [a for s, indices in _find(study, series, instance) for a in _each(s.metadata(), indices)]
    return JSONResponse(attributes, media_type=media_type, headers=UNCACHED)


@router.get(STUDY, summary="WADO-RS: all instances of a study")
@router.get(SERIES, summary="WADO-RS: all instances of a series")
@router.get(INSTANCE, summary="WADO-RS: an instance")
def retrieve(request: Request, study: str, series: str = "", instance: str = "") -> Response:
    """Answer with DICOM files, uncompressed unless the client accepts another transfer syntax."""
    offered = [DICOM, "application/dicom"] if instance else [DICOM]
    media_type, parameters = _accepted(request, offered)
    with clear_errors():
        found = [(s, index) for s, indices in _find(study, series, instance) for index in indices]
        syntax = parameters.get("transfer-syntax", ExplicitVRLittleEndian)
        first = _dicom_file(*found[0], syntax)  # What cannot be sent is noticed before the answer begins.
    if media_type == "application/dicom":
        return Response(first, media_type=media_type, headers=UNCACHED)
    files = (first if n == 0 else _dicom_file(*pair, syntax) for n, pair in enumerate(found))
    return _multipart(files, "application/dicom")


@router.get(INSTANCE + "/frames/{frames}", summary="WADO-RS: the pixels of an instance")
def retrieve_frames(request: Request, study: str, series: str, instance: str, frames: str) -> Response:
    """Answer with uncompressed pixels. Every instance has one frame."""
    offered, header = [PIXELS, "application/octet-stream"], f"transfer-syntax={ExplicitVRLittleEndian}"
    media_type, parameters = _accepted(request, offered)
    if parameters.get("transfer-syntax", "*") not in ("*", ExplicitVRLittleEndian):
        raise HTTPException(406, "Pixels are sent uncompressed: ask for transfer-syntax=*.")
    numbers = frames.split(",")
    if not all(n.isascii() and n.isdigit() and len(n) < 6 and int(n) > 0 for n in numbers):
        raise HTTPException(400, "Frames are numbers from 1, separated by commas.")
    with clear_errors():
        (found, (index,)), = _find(study, series, instance)  # fmt: skip
        if any(int(n) != 1 for n in numbers):
            raise HTTPException(404, "This instance has one frame.")
        pixels = found.pixels(index)
    if media_type == "application/octet-stream":
        return Response(pixels, media_type=media_type, headers=UNCACHED)
    return _multipart([pixels] * len(numbers), f"application/octet-stream; {header}", whole=True)


@router.post("/studies", dependencies=[ANNOTATOR], summary="STOW-RS: store segmentations as labels")
@router.post(STUDY, dependencies=[ANNOTATOR], summary="STOW-RS: store segmentations of a study as labels")
async def store(request: Request, study: str = "") -> Response:
    """Save DICOM SEG objects as final labels of the images that they refer to."""
    _accepted(request, [JSON, PLAIN_JSON])
    if int(request.headers.get("content-length") or 0) > MOST_STORED_BYTES:
        raise HTTPException(413, "This is too large: send fewer objects at once.")
    content, content_type = await request.body(), request.headers.get("content-type", "")
    return await anyio.to_thread.run_sync(_store, content, content_type, study, _address(request))


def _store(content: bytes, content_type: str, study: str, address: str) -> Response:
    """Store the objects of a body, and answer with the list of those that were stored and those that were not."""
    index, app = _index(), app_instance()
    if not os.access(str(app.studies), os.W_OK):
        raise HTTPException(403, "The studies cannot be written to.")
    with clear_errors():
        parts = multipart.split_body(content, content_type)
        if any(media_type != "application/dicom" for _, media_type in parts):
            raise HTTPException(415, "The objects must be of the type application/dicom.")
        answer, status = store_objects([part for part, _ in parts], study, index, app.datastore(), address)
    return JSONResponse(answer, status, media_type=JSON, headers=UNCACHED)


def _index() -> SeriesIndex:
    """Return the index of the app's series; raise HTTPException 404 if its images come from a DICOM store, which has its own service."""
    app = app_instance()
    if not isinstance(app.datastore(), FolderDatastore) or str(app.studies).startswith(("http://", "https://")):
        raise HTTPException(404, "The images come from a DICOM store: its DICOMweb service is at /proxy/dicom.")
    return SeriesIndex.of(app)


def _address(request: Request) -> str:
    """Return the address of this service as the client knows it."""
    root = str(request.scope.get("root_path") or "").rstrip("/")
    return f"{request.url.scheme}://{request.url.netloc}{root}{settings.MONAI_LABEL_API_STR}{PREFIX}"


def _query(request: Request) -> Query:
    return Query.parse(request.query_params.multi_items())


def _accepted(request: Request, offered: list[str]) -> tuple[str, dict[str, str]]:
    """Return what the client accepts of the media types on offer; a parameter `accept` of the address counts more than the header."""
    return multipart.accepted(request.query_params.get("accept") or request.headers.get("accept"), offered)


def _results(request: Request, query: Query, results: Iterable[dict]) -> Response:
    """Answer with the page of results that a search asks for, and say so if there are more than are sent at once."""
    media_type, _ = _accepted(request, [JSON, PLAIN_JSON])
    most = MOST_RESULTS if query.limit is None else min(query.limit, MOST_RESULTS)
    with clear_errors():
        page = list(islice(results, query.offset, query.offset + most + 1))
    headers = dict(UNCACHED)
    if len(page) > most and most == MOST_RESULTS:
        headers["Warning"] = f'299 {request.url.netloc} "There are additional results that can be requested"'
    return JSONResponse(page[:most], media_type=media_type, headers=headers)


def _series_below(study: str, series: str = "") -> list[Series]:
    """Return the series with these identifiers, which may be empty; none if nothing has them."""
    _check_uids(study, series)
    return [s for s in _index().all_series() if study in ("", s.study_uid) and series in ("", s.series_uid)]


def _find(study: str, series: str, instance: str) -> list[tuple[Series, list[int]]]:
    """Return the series that a path names, each with the indices of its objects; raise HTTPException 400 or 404."""
    _check_uids(study, series, instance)
    index = _index()
    if instance:
        found, number = index.instance(study, series, instance)
        return [(found, [number])]
    members = [index.series(study, series)] if series else index.study(study)
    return [(s, list(range(len(s.sop_uids)))) for s in members]


def _check_uids(*texts: str) -> None:
    if not all(text == "" or is_uid(text) for text in texts):
        raise HTTPException(400, "This is no UID: it consists of numbers with points between them.")


def _each(values: list, indices: list[int]) -> list:
    return [values[index] for index in indices]


def _dicom_file(series: Series, index: int, syntax: str) -> bytes:
    """Return an object as a DICOM file in a transfer syntax, "*" for any; raise HTTPException 406 if it is not available in that."""
    if syntax == ExplicitVRLittleEndian:
        return series.file(index)
    content, stored_syntax = series.original_file(index)
    if syntax not in ("*", stored_syntax):
        raise HTTPException(406, f"This instance is available in the transfer syntaxes {ExplicitVRLittleEndian} and {stored_syntax}.")
    return content


def _multipart(parts: Iterable[bytes], media_type: str, *, whole: bool = False) -> Response:
    """Answer with several parts of a media type, at once if that is quicker for a small answer."""
    boundary = multipart.new_boundary()
    pieces = multipart.body(((part, f"Content-Type: {media_type}") for part in parts), boundary)
    inner = media_type.partition(";")[0]
    headers = {**UNCACHED, "Content-Type": f'multipart/related; type="{inner}"; boundary={boundary}'}
    return Response(b"".join(pieces), headers=headers) if whole else StreamingResponse(pieces, headers=headers)
