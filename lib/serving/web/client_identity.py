"""Who a request comes from, so that annotators are told apart: a user, 3D Slicer's client id, a browser's cookie, or a network address."""

import re
import secrets

from fastapi import Request
from fastapi.responses import Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import User

COOKIE = "sam2_client"
COOKIE_SECONDS = 365 * 86400
SLICER_DEFAULT = "user-xyz"  # 3D Slicer's module sends this id for everybody who has not entered one.
MAX_LENGTH = 100
_COOKIE_VALUE = re.compile(r"browser-[0-9a-f]{8,32}")


def client_name(request: Request, user: User | None, fields: dict) -> str:
    """Return the name of the client that sent a request.

    It is the user if the server authenticates users, else the field client_id, else the cookie that the app's pages give to a browser, else
    the network address. The address is added to the id that 3D Slicer sends for everybody who has not entered one.
    """
    if settings.MONAI_LABEL_AUTH_ENABLE and user is not None:
        return user.username
    address = request.client.host if request.client else "-"
    name = str(fields.get("client_id") or browser_name(request) or address)[:MAX_LENGTH]
    return f"{name}@{address}" if name == SLICER_DEFAULT else name


def browser_name(request: Request) -> str:
    """Return the name in a browser's cookie, or "" if it has none that this server could have made."""
    value = request.cookies.get(COOKIE, "")
    return value if _COOKIE_VALUE.fullmatch(value) else ""


def page_client(request: Request, user: User | None) -> tuple[str, str]:
    """Return the name of the client that a page is for, and the name of its browser, which is new if it has none yet."""
    browser = browser_name(request) or new_browser_name()
    return client_name(request, user, {"client_id": browser}), browser


def new_browser_name() -> str:
    return f"browser-{secrets.token_hex(6)}"


def remember_browser(response: Response, browser: str) -> None:
    """Let a page give a browser its name in a cookie, which it sends with all later requests, also with those of OHIF."""
    response.set_cookie(COOKIE, browser, max_age=COOKIE_SECONDS, path="/", samesite="lax")
