"""HTTP: *Next Sample* that says which slice, and the pages of the app under /sam2/.

The routes are put in front of MONAI Label's own when the server starts (`lib.serving.web.api`) and ask for the same rights. Those that read
files or ask a DICOM store are plain functions, which FastAPI runs in its thread pool: the event loop never waits for them. Samples are
chosen one at a time, because datastores keep unlocked caches.
"""

import logging
import secrets
import threading
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
from prometheus_client import CONTENT_TYPE_LATEST

from lib.common.errors import UserError
from lib.imaging.frames import Frames
from lib.serving import observability
from lib.serving.active_learning.strategies import TARGET
from lib.serving.inference.route import turns_of
from lib.serving.web import request_checks, volume_page
from lib.serving.web.http_errors import clear_errors
from lib.serving.web.viewers import Grid, viewer_numbers

logger = logging.getLogger(__name__)

PER_PAGE = 20
ALLOWED = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
# Pages load nothing from elsewhere, and nobody else may frame them.
POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
FRESH = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

router = APIRouter(dependencies=[ALLOWED], tags=["SAM 2"])
templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_sampling = threading.Lock()


@router.post("/activelearning/{strategy}", summary="Next sample: which slice of which image to annotate")
def next_sample(strategy: str, request: Request, params: dict | None = None, user: User = ALLOWED) -> dict:
    """As MONAI Label's, and `viewer`: what OHIF and Slicer call the slice. The fields that clients show say it too."""
    app = app_instance()
    if strategy not in app._strategies:
        raise HTTPException(404, f"There is no strategy {strategy!r}; choose one of {', '.join(app._strategies)}.")
    params = {k: v for k, v in request_checks.can_be_sent(params or {}, "params").items() if k != "strategy"}  # the address says which
    with _sampling, clear_errors(loose=True):
        answer = activelearning.sample(strategy, params, user.username)
    if not answer:
        return {}
    numbers = _numbers(volume_page.grid_of(str(answer.get("path"))), answer)
    return volume_page.as_shown(answer, numbers, _ohif_link(request, app, answer["id"], answer.get("slice")))


@router.post("/scoring/{method}", dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))], summary="Score all images")
def score(method: str, params: dict | None = None, run_sync: bool = False) -> dict:
    """As MONAI Label's, which starts a process also for methods that do not exist."""
    app = app_instance()
    if method not in app._scoring_methods:
        raise HTTPException(404, f"There is no scoring method {method!r}; choose one of {', '.join(app._scoring_methods)}.")
    params = {k: v for k, v in request_checks.can_be_sent(params or {}, "params").items() if k != "method"}
    with clear_errors(loose=True):
        return scoring.run_method(method, params, run_sync)


@router.get("/metrics", response_class=Response, summary="Figures for Prometheus")
def metrics() -> Response:
    app = app_instance()
    observability.WAITING.set(turns_of(app).waiting)
    observability.RUNNING.set(turns_of(app).running)
    observability.FEATURES.set(app._infers["sam2"].feature_bytes)
    return Response(observability.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/sam2/", response_class=HTMLResponse, summary="Page: volumes by need, with the quality of their slices")
def overview(request: Request) -> HTMLResponse:
    app = app_instance()
    wanted = _number("page", request.query_params.get("page", "1"))
    with clear_errors():
        cards = volume_page.volume_summaries(app.datastore(), app.rounds)
        pages = max(1, -(-len(cards) // PER_PAGE))
        n = min(max(wanted, 1), pages)
        shown = [_with_links(request, app, c) for c in cards[(n - 1) * PER_PAGE : n * PER_PAGE]]
    counts = {s: sum(c.status == s for c in cards) for s in ("in work", "untouched", "done", "labelled")}
    text = templates.get_template("overview.html").render(
        cards=shown, counts=counts, number=n, pages=pages, total=len(cards), target=TARGET, store=_is_dicom(app)
    )  # fmt: skip
    return HTMLResponse(text, headers={**FRESH, "Content-Security-Policy": POLICY})


@router.get("/sam2/state", summary="What is known of an image: rounds, estimates, proposals, scores")
def state(image: str = "") -> dict:
    app = app_instance()
    _known(app, image)
    info = app.datastore().get_image_info(image) or {}
    scores = {k: info[k] for k in ("slice_quality", "slice_dice") if k in info}
    return {"image": image, "structures": app.rounds.of(image), "scores": scores}


@router.get("/sam2/thumbnail", response_class=Response, summary="PNG of a slice with the contour of a structure's mask")
def thumbnail(request: Request, image: str = "", structure: str = "") -> Response:
    """Query: image, structure (a key of /sam2/state or a name in a saved label), slice (0-based along the slicing axis)."""
    app = app_instance()
    t = _number("slice", request.query_params.get("slice", ""))
    _known(app, image)
    with clear_errors():
        volume = app.page_volumes.get(app.datastore().get_image_uri(image))
        record = app.rounds.of(image).get(structure)
        frames = Frames.of(volume, window=app.conf.get("window", "auto"), axis=record["axis"] if record else "auto")
        if not 0 <= t < len(frames):
            raise HTTPException(422, f"There is no slice {t}: the image has slices 0 to {len(frames) - 1}.")
        if record:
            mask = app.rounds.mask(image, structure)
        else:
            found = volume_page.saved_mask(app.datastore(), image, structure, volume)
            if found is None:
                raise HTTPException(404, f"Nothing is known of a structure {structure!r} in this image.")
            mask = frames.from_volume(found)
        if mask is not None and mask.shape != (len(frames), *frames.size):
            mask = None  # of an image that was here before under this name
        proposal = (record or {}).get("proposal") or {}
        point = proposal.get("point") if proposal.get("slice") == t else None
        return Response(volume_page.thumbnail(frames, mask, t, point), media_type="image/png", headers=FRESH)


@router.get("/sam2/ohif", response_class=HTMLResponse, summary="Page: OHIF's annotation mode standing on a slice")
def ohif(request: Request, image: str = "") -> HTMLResponse:
    """Query: image (SeriesInstanceUID), slice (default: the proposed one), structure (default: the one proposed on that slice)."""
    app = app_instance()
    if not _is_dicom(app):
        raise HTTPException(404, "The images are files in a folder, which OHIF cannot show: use 3D Slicer.")
    _known(app, image)
    asked = request.query_params.get("slice")
    with clear_errors():
        t = None if asked is None else _number("slice", asked)
        grid = volume_page.grid_of(app.datastore().get_image_uri(image))  # first: this fetches the store's info, too
        info = app.datastore().get_image_info(image) or {}
        card = volume_page.volume_summary(app.datastore(), image, app.rounds.of(image), False)
        here = volume_page.chosen(card.structures, t, request.query_params.get("structure"))
        place = _place(image, info, here, t)
        place["viewer"] = _numbers(grid, place)
    if t is not None and place["viewer"] is None:
        raise HTTPException(422, f"There is no slice {t} in this image, or its geometry cannot be read.")
    nonce = secrets.token_urlsafe(16)
    policy = f"{POLICY}; script-src 'nonce-{nonce}'; frame-src 'self'; connect-src 'self'"
    text = templates.get_template("ohif.html").render(place=place, base=_base(request), nonce=nonce, title=card.name)
    return HTMLResponse(text, headers={**FRESH, "Content-Security-Policy": policy})


def _place(image: str, info: dict, here: volume_page.Structure | None, t: int | None) -> dict:
    """As an answer of *Next Sample*: what the bar above OHIF shows of a slice."""
    out: dict[str, Any] = {"id": image, "StudyInstanceUID": str(info.get("StudyInstanceUID") or ""), "slice": t, "label": ""}
    if here is None:
        return {**out, "reason": "Nothing is annotated yet."}
    proposal = here.proposal
    t = proposal.get("slice") if t is None else t
    out |= {"slice": t, "axis": here.axis, "label": here.label, "volume_dice": here.volume_dice}
    if proposal and t == proposal["slice"]:
        return {**out, "expected_dice": proposal["expected_dice"], "point": proposal["point"], "reason": proposal["reason"]}
    if t is not None and 0 <= t < len(here.dice):
        reason = "This slice is annotated." if t in here.annotated else ""
        return {**out, "expected_dice": here.dice[t], "reason": reason}
    return {**out, "reason": "" if t is not None else "Every slice of it has been annotated."}


def _with_links(request: Request, app, card: volume_page.VolumeSummary) -> dict:
    """A card with addresses, and what viewers call its worst slices."""
    base, structures = _base(request), []
    grid = _grid(app, card.image) if card.structures else None
    for s in card.structures:
        slices = []
        for t in s.worst():
            proposed = t == s.proposal.get("slice")
            place = {"slice": t, "axis": s.axis, "point": s.proposal["point"] if proposed else None}
            query = urlencode({"image": card.image, "structure": s.key, "slice": t})
            slices.append({
                "slice": t, "dice": s.dice[t] if t < len(s.dice) else None, "proposed": proposed,
                "viewer": _numbers(grid, place), "picture": f"{base}/sam2/thumbnail?{query}",
                "ohif": f"{base}/sam2/ohif?{query}" if _is_dicom(app) else None,
            })  # fmt: skip
        structures.append({"of": s, "curve": s.curve(), "slices": slices})
    return {"of": card, "structures": structures, "ohif": _ohif_link(request, app, card.image, None)}


def _grid(app, image: str) -> Grid | None:
    """Where the voxels of an image lie; None if that is not at hand: one broken image must not spoil a page of them."""
    try:
        return volume_page.grid_of(app.datastore().get_image_uri(image))
    except (OSError, requests.RequestException, UserError) as e:
        logger.warning("No geometry of %s: %s", image, e)
        return None


def _numbers(grid: Grid | None, place: dict) -> dict | None:
    """What viewers call the slice of an answer; None if it names none that exists."""
    t = place.get("slice")
    if t is None or grid is None:
        return None
    axis = place.get("axis")
    axis = volume_page.slicing_axis(grid) if axis is None else int(axis)
    return viewer_numbers(grid, axis, t, place.get("point")) if 0 <= t < grid.shape[axis] else None


def _ohif_link(request: Request, app, image: str, t: int | None) -> str | None:
    query = {"image": image} | ({} if t is None else {"slice": t})
    return f"{_base(request)}/sam2/ohif?{urlencode(query)}" if _is_dicom(app) else None


def _base(request: Request) -> str:
    """What comes before the routes in addresses of this server."""
    return str(request.scope.get("root_path") or "").rstrip("/") + settings.MONAI_LABEL_API_STR


def _is_dicom(app) -> bool:
    return isinstance(app.datastore(), DICOMWebDatastore)


def _known(app, image: str) -> None:
    """Only ids of the datastore go on to files."""
    if not image:
        raise HTTPException(422, "Say which image: ?image=ID.")
    with clear_errors():
        if image not in app.datastore().list_images():
            raise HTTPException(404, "There is no such image in the datastore.")


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise HTTPException(422, f"{name} must be a whole number.")
    return int(text)
