"""The app's own routes: *Next Sample* that names a slice, scoring, metrics, and the pages under /sam2/.

They ask for the same rights as MONAI Label's own. All are plain functions, which FastAPI runs in its thread pool, so that the event loop
does not wait while they read files or ask a DICOM store.
"""

import logging
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
import requests
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import activelearning, scoring
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lib.common.errors import UserError
from lib.imaging import geometry
from lib.imaging.frames import Frames
from lib.imaging.volume import Grid
from lib.serving import observability
from lib.serving.active_learning.strategies import TARGET_DICE
from lib.serving.dicomweb.index import SeriesIndex
from lib.serving.inference.request_queue import RequestQueue
from lib.serving.web import request_checks, volume_page
from lib.serving.web.client_identity import client_name, page_client, remember_browser
from lib.serving.web.http_errors import clear_errors
from lib.serving.web.known_images import known_image, listing_of
from lib.serving.web.label_routes import checksum, history_on_page
from lib.serving.web.ohif_files import base_path
from lib.serving.web.viewers import locate_in_viewers
from lib.serving.web.volume_choices import choices_of

logger = logging.getLogger(__name__)

VOLUMES_PER_PAGE = 20
DIGITS_IN_NAMES = 8  # Of the digest of an image's content.
LEFT_OUT_ON_PAGE = 100
ALLOWED = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
# The pages load nothing from other servers, and no other site may show them in a frame.
PAGE_POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
UNCACHED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

router = APIRouter(dependencies=[ALLOWED], tags=["SAM 2"])
_loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
templates = jinja2.Environment(loader=_loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_sampling = threading.Lock()  # Samples are chosen one at a time, because datastores keep caches without locks.


@router.post("/activelearning/{strategy}", summary="Next sample: which slice of which image to annotate")
def next_sample(strategy: str, request: Request, params: dict | None = None, user: User = ALLOWED) -> dict:
    """Answer as MONAI Label does, with the slice in the fields that clients display, and in `viewer` how OHIF and Slicer name it."""
    app = app_instance()
    if strategy not in app._strategies:
        raise HTTPException(404, f"There is no strategy {strategy!r}; choose one of {', '.join(app._strategies)}.")
    params = {k: v for k, v in request_checks.check_serializable(params or {}, "params").items() if k != "strategy"}  # The URL has it.
    if isinstance(params.get("image"), str):
        params["image"], _ = SeriesIndex.of(app).resolve(params["image"])
    params["client_id"] = client_name(request, user, params)
    observability.note(client=params["client_id"])
    with _sampling, clear_errors(400, loose=True):
        answer = activelearning.sample(strategy, params, user.username)
    if not answer:
        return {}
    if series := SeriesIndex.of(app).of_image(answer["id"]):
        answer |= series.identity()
    path, digest = str(answer.get("path")), app.datastore().image_digest(answer["id"])
    with suppress(OSError):
        answer["checksum"] = checksum(path)
    # 3D Slicer uses a file again that it has under the same name, so the name differs if the content does.
    answer["name"] = volume_page.insert_before_ending(str(answer.get("name") or answer["id"]), digest[:DIGITS_IN_NAMES])
    location = _locate(volume_page.find_grid(path), answer)
    return volume_page.describe_slice(answer, location, _ohif_link(request, app, answer["id"], answer.get("slice")))


@router.post("/scoring/{method}", dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))], summary="Score all images")
def score(method: str, params: dict | None = None, run_sync: bool = False) -> dict:
    """Answer as MONAI Label does, but with 404 for an unknown method, for which MONAI Label would start a process."""
    app = app_instance()
    if method not in app._scoring_methods:
        raise HTTPException(404, f"There is no scoring method {method!r}; choose one of {', '.join(app._scoring_methods)}.")
    params = {k: v for k, v in request_checks.check_serializable(params or {}, "params").items() if k != "method"}
    with clear_errors(loose=True):
        return scoring.run_method(method, params, run_sync)


@router.get("/metrics", response_class=Response, summary="Figures for Prometheus")
def metrics() -> Response:
    app = app_instance()
    observability.WAITING.set(RequestQueue.of(app).waiting)
    observability.RUNNING.set(RequestQueue.of(app).running)
    observability.FEATURES.set(app._infers["sam2"].feature_bytes)
    return Response(generate_latest(observability.REGISTRY), media_type=CONTENT_TYPE_LATEST)


@router.get("/sam2/", response_class=HTMLResponse, summary="Page: volumes by need, with the quality of their slices")
def overview(request: Request, user: User = ALLOWED) -> HTMLResponse:
    app = app_instance()
    client, browser = page_client(request, user)
    number = _parse_number("page", request.query_params.get("page", "1"))
    with clear_errors():
        rejected = app.lending.state()["rejected"]
        summaries = sorted(volume_page.summarize_volumes(app.datastore(), app.records), key=lambda s: s.image in rejected)
        pages = max(1, -(-len(summaries) // VOLUMES_PER_PAGE))
        number = min(max(number, 1), pages)
        volumes = [_with_links(request, app, s) for s in summaries[(number - 1) * VOLUMES_PER_PAGE : number * VOLUMES_PER_PAGE]]
        for volume in volumes:
            image = volume["summary"].image
            volume |= {"choices": choices_of(app.lending, image, client), "problem": app.readable_volumes.problems().get(image)}
            volume["history"] = history_on_page(app, image)
        left_out = listing_of(app).left_out
    counts = {status: sum(s.status == status for s in summaries) for status in volume_page.STATUSES}
    text = templates.get_template("overview.html").render(
        volumes=volumes, counts=counts, number=number, pages=pages, total=len(summaries), target=TARGET_DICE,
        left_out=list(left_out.items())[:LEFT_OUT_ON_PAGE], left_out_count=len(left_out),
    )  # fmt: skip
    response = HTMLResponse(text, headers={**UNCACHED, "Content-Security-Policy": PAGE_POLICY})
    remember_browser(response, browser)
    return response


@router.get("/sam2/left_out", summary="What the studies folder holds that is not offered, and why")
def left_out() -> dict:
    return {"left_out": [{"path": path, "reason": reason} for path, reason in listing_of(app_instance()).left_out.items()]}


@router.get("/sam2/state", summary="What is known of an image: rounds, estimates, proposals, scores")
def state(image: str = "") -> dict:
    app = app_instance()
    image = known_image(app, image)
    info = app.datastore().get_image_info(image) or {}
    scores = {k: info[k] for k in ("slice_quality", "slice_dice") if k in info}
    series = SeriesIndex.of(app).of_image(image)
    uids = {"StudyInstanceUID": series.study_uid, "SeriesInstanceUID": series.series_uid} if series else {}
    return {"image": image, **uids, "structures": app.records.for_image(image), "scores": scores}


@router.get("/sam2/thumbnail", response_class=Response, summary="PNG of a slice with the contour of a structure's mask")
def thumbnail(request: Request, image: str = "", structure: str = "") -> Response:
    """Answer the query fields image, structure (a key of /sam2/state or a name in a saved label) and slice (0-based)."""
    app = app_instance()
    t = _parse_number("slice", request.query_params.get("slice", ""))
    image = known_image(app, image)
    with clear_errors():
        volume = app.page_volumes.get(app.datastore().get_image_uri(image))
        record = app.records.for_image(image).get(structure)
        frames = Frames.of(volume, window=app.conf.get("window", "auto"), axis=record["axis"] if record else "auto")
        if not 0 <= t < len(frames):
            raise HTTPException(422, f"There is no slice {t}: the image has slices 0 to {len(frames) - 1}.")
        if record:
            mask = app.records.mask(image, structure)
        else:
            saved_mask = volume_page.read_saved_mask(app.datastore(), image, structure, volume)
            if saved_mask is None:
                raise HTTPException(404, f"Nothing is known of a structure {structure!r} in this image.")
            mask = frames.from_volume(saved_mask)
        if mask is not None and mask.shape != (len(frames), *frames.size):
            mask = None  # The record belongs to an earlier image of the same name.
        proposal = (record or {}).get("proposal") or {}
        point = proposal.get("point") if proposal.get("slice") == t else None
        return Response(volume_page.render_thumbnail(frames, mask, t, point), media_type="image/png", headers=UNCACHED)


@router.get("/sam2/ohif", response_class=HTMLResponse, summary="Page: OHIF's annotation mode standing on a slice")
def ohif(request: Request, image: str = "", user: User = ALLOWED) -> HTMLResponse:
    """Answer the query fields image (id or SeriesInstanceUID), slice (default: the proposed one), structure (default: as proposed there)."""
    app = app_instance()
    image = known_image(app, image)
    if not _is_in_ohif(app, image):
        raise HTTPException(400, f"OHIF cannot show {image}: it has a single slice, or cannot be read (see the server's log). Use 3D Slicer.")
    requested, (client, browser) = request.query_params.get("slice"), page_client(request, user)
    with clear_errors():
        t = None if requested is None else _parse_number("slice", requested)
        # The grid comes first, because fetching the image from the DICOM store also fetches its info.
        path = app.datastore().get_image_uri(image)
        grid = volume_page.find_grid(path)
        info = app.datastore().get_image_info(image) or {}
        summary = volume_page.summarize_volume(app.datastore(), image, app.records.for_image(image), False)
        structure = volume_page.choose_structure(summary.structures, t, request.query_params.get("structure"))
        if series := SeriesIndex.of(app).of_image(image):
            info = {**info, **series.identity()}
        place = _describe_place(image, info, structure, t)
        place["viewer"] = _locate(grid, place)
    if t is not None and place["viewer"] is None:
        raise HTTPException(422, f"There is no slice {t} in this image, or its geometry cannot be read.")
    app.lending.lend(image, client)
    app.open_ahead(path)
    nonce = secrets.token_urlsafe(16)
    policy = f"{PAGE_POLICY}; script-src 'nonce-{nonce}'; frame-src 'self'; connect-src 'self'"
    text = templates.get_template("ohif.html").render(place=place, base=base_path(request), nonce=nonce, title=summary.name)
    response = HTMLResponse(text, headers={**UNCACHED, "Content-Security-Policy": policy})
    remember_browser(response, browser)
    return response


def _describe_place(image: str, info: dict, structure: volume_page.StructureSummary | None, t: int | None) -> dict:
    """Return what the bar above OHIF displays of slice `t` (None: the proposed one), with the fields of an answer of *Next Sample*."""
    series = str(info.get("SeriesInstanceUID") or image)
    place: dict[str, Any] = {"id": image, "StudyInstanceUID": str(info.get("StudyInstanceUID") or ""), "SeriesInstanceUID": series}
    place |= {"slice": t, "label": ""}
    if structure is None:
        return {**place, "reason": "Nothing is annotated yet."}
    proposal = structure.proposal
    t = proposal.get("slice") if t is None else t
    place |= {"slice": t, "axis": structure.axis, "label": structure.label, "volume_dice": structure.volume_dice}
    if proposal and t == proposal["slice"]:
        return {**place, "expected_dice": proposal["expected_dice"], "point": proposal["point"], "reason": proposal["reason"]}
    if t is not None and 0 <= t < len(structure.dice):
        reason = "This slice is annotated." if t in structure.annotated else ""
        return {**place, "expected_dice": structure.dice[t], "reason": reason}
    return {**place, "reason": "" if t is not None else "Every slice of it has been annotated."}


def _with_links(request: Request, app, summary: volume_page.VolumeSummary) -> dict:
    """Return what the template displays of a volume: its summary, and the worst slices with addresses and their names in viewers."""
    base, structures = base_path(request), []
    grid = _read_grid(app, summary.image) if summary.structures else None
    for structure in summary.structures:
        slices = []
        for t in structure.worst_slices():
            proposed = t == structure.proposal.get("slice")
            place = {"slice": t, "axis": structure.axis, "point": structure.proposal["point"] if proposed else None}
            query = urlencode({"image": summary.image, "structure": structure.key, "slice": t})
            slices.append({
                "slice": t, "dice": structure.dice[t] if t < len(structure.dice) else None, "proposed": proposed,
                "viewer": _locate(grid, place), "picture": f"{base}/sam2/thumbnail?{query}",
                "ohif": f"{base}/sam2/ohif?{query}" if _is_in_ohif(app, summary.image) else None,
            })  # fmt: skip
        structures.append({"summary": structure, "plot": structure.plot(), "slices": slices})
    return {"summary": summary, "structures": structures, "ohif": _ohif_link(request, app, summary.image, None)}


def _read_grid(app, image: str) -> Grid | None:
    """Return the voxel grid of an image, or None if it cannot be read, so that one broken image does not spoil the page."""
    try:
        return volume_page.find_grid(app.datastore().get_image_uri(image))
    except (OSError, requests.RequestException, UserError) as e:
        logger.warning("No geometry of %s: %s", image, e)
        return None


def _locate(grid: Grid | None, place: dict) -> dict | None:
    """Return how viewers name the slice of an answer, or None if the answer names no slice that exists."""
    t, axis = place.get("slice"), place.get("axis")
    if t is None or grid is None:
        return None
    axis = geometry.slicing_axis(grid.shape, geometry.spacing(grid.affine)) if axis is None else int(axis)
    return locate_in_viewers(grid, axis, t, place.get("point")) if 0 <= t < grid.shape[axis] else None


def _ohif_link(request: Request, app, image: str, t: int | None) -> str | None:
    query = {"image": image} | ({} if t is None else {"slice": t})
    return f"{base_path(request)}/sam2/ohif?{urlencode(query)}" if _is_in_ohif(app, image) else None


def _is_in_ohif(app, image: str) -> bool:
    """Return whether OHIF can show an image. Its annotation mode draws nothing for a single slice."""
    series = SeriesIndex.of(app).of_image(image)
    return isinstance(app.datastore(), DICOMWebDatastore) or (series is not None and len(series.sop_uids) > 1)


def _parse_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise HTTPException(422, f"{name} must be a whole number.")
    return int(text)
