"""Forms of the page /sam2/, which are sent to the same addresses as requests of scripts."""

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from lib.serving.web.ohif_files import base_path


def refuse_other_sites(request: Request) -> None:
    """Raise HTTPException 403 if the page of another site has sent a request."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise HTTPException(403, "Only the pages of this server may send this form.")


def answer_form(request: Request, content: dict) -> Response:
    """Return the answer to a script, as JSON, or to a form, which leads back to the page."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"{base_path(request)}/sam2/", 303)
    return JSONResponse(content)
