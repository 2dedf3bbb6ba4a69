"""A login form for the app's pages, where MONAI Label's authentication is on.

MONAI Label takes bearer tokens only, which a browser does not send when it opens a page, and OHIF does not send at all. Here the token is
kept in a cookie that scripts cannot read, and `CookieToken` puts it where MONAI Label looks for it. The cookie is not sent with requests
that other sites make, except when a link is followed.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode, urlsplit

import jinja2
import requests
from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user import auth
from monailabel.endpoints.user.auth import token_uri
from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from lib.serving.web.ohif_files import base_path

ADDRESS = "/sam2/login"
# Names of the cookies: the tokens, and for the pages, how many seconds the first one is valid.
TOKEN, REFRESH, VALIDITY = "sam2_token", "sam2_refresh", "sam2_validity"
DEFAULT_VALIDITY_S = 300
TIMEOUT_S = 30
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
# How realms sign tokens: with private keys, whose public ones MONAI Label asks for. PyJWT refuses all tokens if no algorithm is named, and
# MONAI Label names none.
SIGNATURES = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
auth.jwt = SimpleNamespace(decode=partial(auth.jwt.decode, algorithms=SIGNATURES))
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": POLICY}

router = APIRouter(prefix=ADDRESS, include_in_schema=False)
_loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
_templates = jinja2.Environment(loader=_loader, autoescape=True, undefined=jinja2.StrictUndefined)


class CookieToken:
    """ASGI middleware that turns the cookie with a token into the header that MONAI Label asks for, unless the request has one."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            token = cookie_parser(headers.get("cookie", "")).get(TOKEN)
            if token and "authorization" not in headers:
                scope = {**scope, "headers": [*scope["headers"], (b"authorization", f"Bearer {token}".encode("latin-1", "ignore"))]}
        await self.app(scope, receive, send)


def login_redirect(request: Request) -> Response | None:
    """Return the way to the login form for a browser that has opened a page without being logged in; None for other requests."""
    if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
        return None
    target = base_path(request) + request.url.path.removeprefix(base_path(request))
    query = urlencode({"next": f"{target}?{request.url.query}" if request.url.query else target})
    return RedirectResponse(f"{base_path(request)}{ADDRESS}?{query}", 303, headers={"Cache-Control": "no-store"})


@router.get("")
def form(request: Request, next: str = "") -> HTMLResponse:  # noqa: A002  (the name of the query field)
    return _form(request, next, "")


@router.post("")
def log_in(request: Request, username: str = Form(""), password: str = Form(""), next: str = Form("")) -> Response:  # noqa: A002
    """Ask the realm for a token, and go on to the page that was wanted."""
    try:
        tokens = _fetch_tokens({"grant_type": "password", "username": username, "password": password})
    except HTTPException as e:
        return _form(request, next, str(e.detail), e.status_code)
    return _with_cookies(RedirectResponse(_local_target(request, next), 303, headers=HEADERS), request, tokens)


@router.post("/refresh")
def refresh(request: Request) -> Response:
    """Exchange the cookies for new ones before the token ends; 401 if that is not possible any more."""
    tokens = _fetch_tokens({"grant_type": "refresh_token", "refresh_token": request.cookies.get(REFRESH, "")})
    return _with_cookies(Response(status_code=204, headers=HEADERS), request, tokens)


def _fetch_tokens(fields: dict) -> dict:
    """Return the realm's answer with access_token, and perhaps refresh_token and expires_in; raise HTTPException with a sentence."""
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        raise HTTPException(404, "This server has no login.")
    try:
        answer = requests.post(token_uri(), data={"client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID, **fields}, timeout=TIMEOUT_S)
        tokens = answer.json() if answer.ok else {}
    except (requests.RequestException, ValueError) as e:
        raise HTTPException(502, "The login server does not answer; try again later.") from e
    if answer.status_code >= 500:
        raise HTTPException(502, "The login server failed; try again later.")
    if not tokens.get("access_token"):
        raise HTTPException(401, "This name and password are not accepted." if "password" in fields else "The session has ended: log in again.")
    return tokens


def _with_cookies(response: Response, request: Request, tokens: dict) -> Response:
    """Return the response with the tokens in cookies, which end with the browser's session."""
    base, is_secure = base_path(request), request.url.scheme == "https"
    response.set_cookie(TOKEN, tokens["access_token"], path=f"{base}/", httponly=True, samesite="lax", secure=is_secure)
    if tokens.get("refresh_token"):
        response.set_cookie(REFRESH, tokens["refresh_token"], path=base + ADDRESS, httponly=True, samesite="lax", secure=is_secure)
        seconds = tokens.get("expires_in") or DEFAULT_VALIDITY_S
        response.set_cookie(VALIDITY, str(int(seconds)), path=f"{base}/", samesite="lax", secure=is_secure)
    return response


def _local_target(request: Request, target: str) -> str:
    """Return a target on this server: the one that is wanted, or the page of volumes if that leads elsewhere."""
    parts, base = urlsplit(target), base_path(request)
    is_local = not parts.scheme and not parts.netloc and target.startswith(f"{base}/") and "\\" not in target and target.isprintable()
    return target if is_local and not target.startswith("//") else f"{base}/sam2/"


def _form(request: Request, target: str, problem: str, status: int = 200) -> HTMLResponse:
    text = _templates.get_template("login.html").render(action=f"{base_path(request)}{ADDRESS}", next=target, problem=problem)
    return HTMLResponse(text, status, headers=HEADERS)
