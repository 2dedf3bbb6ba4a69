"""Mix-ins of the app, to be listed before `MONAILabelApp` among its bases.

They bring HTTP errors, volumes opened ahead, loans of volumes, and the app's own routes.
"""

import logging
import math
import threading
from functools import cached_property

from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException

from lib.common.errors import OptionError
from lib.serving.active_learning.lending import LEND_MINUTES, Lending
from lib.serving.active_learning.readable_volumes import ReadableVolumes
from lib.serving.datastore.labels import saved_label
from lib.serving.datastore.sessions import UploadSessions
from lib.serving.inference.tasks import VolumeCache

logger = logging.getLogger(__name__)


class HttpErrorsMixin:
    """Answers wrong inference requests with HTTP 404 (unknown image) or 400 (unknown model, missing field) instead of 500."""

    def infer(self, request, datastore=None):
        try:
            store, image = datastore or self.datastore(), str(request.get("image") or "")
            session_name = self.sessions().record_id(image) if self.sessions() else None
            # MONAI Label replaces the image's id by its path, so the task needs the id in a field of its own.
            image_id = session_name or image
            fields = {
                "image_id": image_id, "image_digest": store.image_digest(image_id),
                "saved_label": None if session_name else saved_label(store, image, request),
            }  # fmt: skip
            return super().infer({**request, **fields}, datastore)
        except ImageNotFoundException as e:
            raise HTTPException(404, str(e.msg)) from e
        except MONAILabelException as e:
            if e.error == MONAILabelError.INVALID_INPUT:
                raise HTTPException(400, str(e.msg)) from e
            raise


class PrefetchMixin:
    """Starts to read and encode a volume in the background when it is proposed by *Next Sample* or uploaded as a session."""

    def next_sample(self, request):
        """Answer as MONAI Label does, and open the volume that is proposed."""
        answer = super().next_sample(request)
        self.open_ahead(answer.get("path"))
        return answer

    def _load_sessions(self, load=False):
        if not load:
            return None
        path, expiry_s = settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY
        return UploadSessions(path, expiry_s, self._infers["sam2"].read, self.open_ahead, lambda name: self.records.forget(name))

    def open_ahead(self, path: str | None) -> threading.Thread | None:
        """Read an image and encode its slices in a thread. A failure is only logged, because its first request will report it."""
        if not path:
            return None

        def open_or_log():
            try:
                self._infers["sam2"].open(str(path))
            except Exception as e:
                logger.info("Could not open %s ahead: %s", path, e)

        thread = threading.Thread(target=open_or_log, name="open", daemon=True)
        thread.start()
        return thread


class SharingMixin:
    """Holds what the strategies need so that several annotators share the volumes: the loans, and which volumes cannot be read."""

    @cached_property
    def lending(self) -> Lending:
        """Who has which volume, kept in the folder of the annotation records.

        Raises:
            OptionError: The value of `--conf lend_minutes` is not a positive number.
        """
        text = str(self.conf.get("lend_minutes", LEND_MINUTES))
        try:
            minutes = float(text)
        except ValueError:
            minutes = math.nan
        if not 0 < minutes < math.inf:
            raise OptionError(f"--conf lend_minutes {text}: give a number of minutes that is greater than 0.")
        return Lending(self.records.folder / ".lending", minutes, digest_of=lambda image: self.datastore().image_digest(image))

    @cached_property
    def readable_volumes(self) -> ReadableVolumes:
        """Opens volumes for the strategies by the cache from which inference takes them."""
        return ReadableVolumes(lambda path: self._infers["sam2"].read(path))


class RoutesMixin:
    """Installs the app's routes (`lib.serving.web.api`) in the server, but not in processes for scoring or training."""

    def on_init_complete(self):
        super().on_init_complete()
        # Only a server process has MONAI Label's FastAPI app, therefore these imports are not at the top.
        from monailabel.app import app

        from lib.serving.web import api

        api.install(app, self.conf.get("cors_origins") or "")

    @cached_property
    def page_volumes(self) -> VolumeCache:
        """Volumes for the thumbnails of the pages, in a cache of their own so that viewing pages does not evict volumes being annotated."""
        channel = self.conf.get("channel")
        return VolumeCache(2, int(channel) if channel else None)
