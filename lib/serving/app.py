"""What the app adds to MONAI Label's own: clear HTTP errors instead of 500, and volumes that are ready when the first click comes."""

import logging
import threading
from collections.abc import Callable
from functools import cached_property

from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException

from lib.serving.datastore.labels import saved_label
from lib.serving.datastore.sessions import OwnVolumes
from lib.serving.inference.tasks import VolumeCache

logger = logging.getLogger(__name__)


class ClearErrors:
    """Mix-in for a `MONAILabelApp`, before it in the bases."""

    def infer(self, request, datastore=None):
        """As in MONAI Label; unknown images answer 404, unknown models and missing fields 400."""
        try:
            store, image = datastore or self.datastore(), str(request.get("image") or "")
            name = self.sessions().name_of(image) if self.sessions() else None
            more = {"image_id": name or image, "saved_label": None if name else saved_label(store, image, request)}
            return super().infer({**request, **more}, datastore)  # the task is given a path
        except ImageNotFoundException as e:
            raise HTTPException(404, str(e.msg)) from e
        except MONAILabelException as e:
            if e.error == MONAILabelError.INVALID_INPUT:
                raise HTTPException(400, str(e.msg)) from e
            raise


class OpensAhead:
    """Mix-in likewise: *Next Sample* and an uploaded session start reading and encoding the volume in the background."""

    def next_sample(self, request):
        answer = super().next_sample(request)
        self.open_ahead(answer.get("path"))
        return answer

    def _load_sessions(self, load=False):
        if not load:
            return None
        path, seconds = settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY
        return OwnVolumes(path, seconds, self.open_ahead, lambda name: self.rounds.forget(name))

    def open_ahead(self, path: str | None) -> threading.Thread | None:
        """Reads the image and has its slices encoded; what is wrong with it, its first request will say."""
        if not path:
            return None
        thread = threading.Thread(target=_try, args=(self.opener(), str(path)), name="open", daemon=True)
        thread.start()
        return thread

    def opener(self) -> Callable[[str], None]:
        """Reads the image at a path and wishes for its slices."""
        return self._infers["sam2"].open


class ServesPages:
    """Mix-in likewise: once the server starts, `lib.serving.web.api` stands before MONAI Label's routes.

    Processes that only construct the app, for scoring or training, register nothing.
    """

    def on_init_complete(self):
        super().on_init_complete()
        from monailabel.app import app  # here, not above: only a server has it

        from lib.serving.web import api

        api.install(app)

    @cached_property
    def page_volumes(self) -> VolumeCache:
        """Volumes for thumbnails, apart from those being worked on: who looks through the page must not slow down who clicks."""
        channel = self.conf.get("channel")
        return VolumeCache(2, int(channel) if channel else None)


def _try(opener, path: str) -> None:
    try:
        opener(path)
    except Exception as e:
        logger.info("Could not open %s ahead: %s", path, e)
