"""Routes by which annotators choose a volume, skip it, mark it as bad, and take that back."""

import logging

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.serving.active_learning.lending import Lending
from lib.serving.web.client_identity import client_name
from lib.serving.web.forms import answer_form, refuse_other_sites
from lib.serving.web.http_errors import clear_errors
from lib.serving.web.known_images import known_image

logger = logging.getLogger(__name__)

ACTIONS = ("choose", "skip", "reject", "take_back")
ALLOWED = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))

router = APIRouter(prefix="/sam2/choices", dependencies=[ALLOWED], tags=["SAM 2"])


@router.get("", summary="Which volumes are lent, skipped or marked as bad, and by whom")
def choices() -> dict:
    """Answer with {loans: {image: {client, until}}, skipped: {image: {client: {reason, time}}}, rejected: {image: {client, reason, time}}}.

    All have a digest, too: that of the image's content.
    """
    return app_instance().lending.state()


@router.post("", summary="Choose a volume, skip it, mark it as bad, or take that back", response_model=None)
def change(
    request: Request, image: str = Form(), action: str = Form(), reason: str = Form(""), client_id: str = Form(""), user: User = ALLOWED
) -> Response:
    """Change what *Next Sample* proposes.

    Args:
        image: Id or SeriesInstanceUID.
        action: "choose" (next for this client), "skip" (never for this client), "reject" (for nobody), or "take_back" (undo these).
        reason: Why a volume is skipped or rejected.
        client_id: Who asks, if no user is logged in and no cookie says so.

    Returns:
        What is then known of the volume, as JSON; a form of the page /sam2/ is sent back to that page.

    Raises:
        HTTPException: 400 if the volume cannot be chosen, 403 if the page of another site has sent the form, 404 for an unknown image, 422
            for an unknown action.
    """
    refuse_other_sites(request)
    if action not in ACTIONS:
        raise HTTPException(422, f"There is no action {action[:80]!r}; choose one of {', '.join(ACTIONS)}.")
    app = app_instance()
    image = known_image(app, image)
    with clear_errors(400):
        client, lending = client_name(request, user, {"client_id": client_id}), app.lending
        if action in ("choose", "take_back"):
            getattr(lending, action)(image, client)
        else:
            getattr(lending, action)(image, client, reason)
    logger.info("%s: %s by %s", image, action, client)
    return answer_form(request, {"image": image, **choices_of(lending, image, client)})


def choices_of(lending: Lending, image: str, client: str) -> dict:
    """Return what is known of a volume's loan and refusals, as a client is told.

    Returns:
        {lent_to: client or "", is_lent_to_you, rejected: {client, reason, time} or None, skipped: {reason, time} or None}; `skipped` is
        this client's.
    """
    state = lending.state()
    borrower = state["loans"].get(image, {}).get("client", "")
    return {
        "lent_to": borrower, "is_lent_to_you": borrower == client, "rejected": state["rejected"].get(image),
        "skipped": state["skipped"].get(image, {}).get(client),
    }  # fmt: skip
