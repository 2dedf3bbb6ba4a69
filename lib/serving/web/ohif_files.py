"""The files of OHIF as MONAI Label ships them, adapted to where this server is reached and to where its images are.

OHIF was built for the path /ohif/; behind a path prefix, the files that hold this path are sent with the prefix in it.
"""

import json
import mimetypes
import re
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.endpoints import ohif
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.utils.app import app_instance

from lib.serving.web.client_identity import browser_name, new_browser_name, remember_browser

FOLDER = Path(ohif.__file__).parent / "static" / "ohif"
SCRIPT = "text/javascript"
NOTICE_DAYS = 180  # OHIF's notice about its use, which covers a part of the image, does not return for so long after it was confirmed.
_BUILT_FOR = re.compile(rb"(?<=[\"'`])/ohif/")  # The path in texts of scripts and of HTML attributes.
_TEXT_ENDINGS = (".js", ".html", ".json", ".css")
_FOREIGN_TEXT_ENDINGS = (".html", ".css")
# Typefaces of another server, for which a browser without internet connection would wait.
_FOREIGN_TYPEFACE = re.compile(rb"<link[^>]*https://fonts\.[^>]*>|@import url\(https://fonts\.[^)]*\);")
# OHIF's service worker would keep its configuration when the server has another one, so it is replaced by one that ends itself.
_NO_WORKER = "self.addEventListener('install', () => self.skipWaiting());\nself.addEventListener('activate', () => self.registration.unregister());\n"

router = APIRouter(prefix="/ohif", tags=["Others"], dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))])


@router.get("/app-config.js", include_in_schema=False)
def configuration(request: Request) -> Response:
    """Answer with OHIF's configuration."""
    base = base_path(request)
    is_store = str(app_instance().studies).startswith(("http://", "https://"))
    text = configuration_script(base, is_store)
    return Response(text, media_type=SCRIPT, headers={"Cache-Control": "no-store"})


@router.get("/sw.js", include_in_schema=False)
def service_worker() -> Response:
    return Response(_NO_WORKER, media_type=SCRIPT, headers={"Cache-Control": "no-store"})


@router.get("/init-service-worker.js", include_in_schema=False)
def no_service_worker() -> Response:
    return Response("// This server does without OHIF's service worker.\n", media_type=SCRIPT)


@router.get("/{path:path}", include_in_schema=False)
def file(request: Request, path: str) -> Response:
    """Answer with a file of OHIF, or with its page for the addresses of studies and modes."""
    known = _known_files()
    if path not in known:
        if Path(path).suffix in (*_TEXT_ENDINGS, ".wasm", ".png", ".svg", ".ico"):
            raise HTTPException(404, "OHIF has no such file.")
        path = "index.html"
    media_type = SCRIPT if path.endswith(".js") else mimetypes.guess_type(path)[0] or "application/octet-stream"
    headers = {"Cache-Control": "no-cache"}  # The browser asks whether its copy is still good.
    base = base_path(request)
    if path.endswith(_FOREIGN_TEXT_ENDINGS) or (base and path.endswith(_TEXT_ENDINGS)):
        response = Response(_adapted(path, base), media_type=media_type, headers=headers)
        if path == "index.html":
            remember_browser(response, browser_name(request) or new_browser_name())
        return response
    return FileResponse(known[path], media_type=media_type, headers=headers)


def base_path(request: Request) -> str:
    """Return the path that precedes all routes in addresses of this server."""
    return str(request.scope.get("root_path") or "").rstrip("/") + settings.MONAI_LABEL_API_STR


def configuration_script(base: str, is_store: bool) -> str:
    """Return the script with OHIF's configuration.

    It also tells OHIF's MONAI Label panel the address of this server, by the cookie in which the panel keeps it.

    Args:
        base: Path that precedes all routes.
        is_store: Whether the images are in a DICOM store, to which MONAI Label relays requests, or served by this server itself.
    """
    root = f"{base}/proxy/dicom" if is_store else f"{base}/dicomweb"
    wado, qido = (f"{root}/wado", f"{root}/qido") if is_store else (root, root)
    source = {
        "friendlyName": "Images of this server", "name": "images", "wadoUriRoot": wado, "qidoRoot": qido, "wadoRoot": wado,
        "qidoSupportsIncludeField": True, "supportsReject": False, "imageRendering": "wadors", "thumbnailRendering": "wadors",
        "enableStudyLazyLoad": False, "supportsFuzzyMatching": is_store, "supportsWildcard": True,
        "dicomUploadEnabled": is_store, "bulkDataURI": {"enabled": True},
    }  # fmt: skip
    configuration = {
        "routerBasename": f"{base}/ohif/", "showStudyList": True, "extensions": [], "modes": [], "showWarningMessageForCrossOrigin": True,
        "showCPUFallbackMessage": True, "showLoadingIndicator": True, "strictZSpacingForVolumeViewport": True,
        "defaultDataSourceName": "dicomweb", "useSharedArrayBuffer": "FALSE",
        "activateViewportBeforeInteraction": False,  # Otherwise the first click in another view would only choose that view.
        "investigationalUseDialog": {"option": "configure", "days": NOTICE_DAYS},
        "dataSources": [{
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb", "sourceName": "dicomweb", "configuration": source,
        }],
    }  # fmt: skip
    address = f"escape(location.origin + {json.dumps(base + '/')})"
    cookie = f"document.cookie = `MONAILABEL_SERVER_URL=${{{address}}}; path={base}/ohif; SameSite=Lax`;"
    # In the frame of the page with the bar, OHIF's own list of studies would lead away from it.
    in_frame = "window.config.showStudyList = window.parent === window;"
    return f"window.config = {json.dumps(configuration, indent=2)};\n{in_frame}\n{cookie}\n"


@lru_cache(1)
def _known_files() -> dict[str, Path]:
    """Return the files of OHIF by their paths within its folder. Requests are looked up here, so none leads out of it."""
    return {p.relative_to(FOLDER).as_posix(): p for p in FOLDER.rglob("*") if p.is_file()}


@lru_cache(256)
def _adapted(path: str, base: str) -> bytes:
    """Return the content of a file of OHIF with the path prefix, and without what its page would load from other servers."""
    content = _known_files()[path].read_bytes()
    if path.endswith(_FOREIGN_TEXT_ENDINGS):
        content = _FOREIGN_TYPEFACE.sub(b"", content)
    return _BUILT_FOR.sub(f"{base}/ohif/".encode(), content) if base else content
