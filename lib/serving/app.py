"""What the app adds to MONAI Label's own: clear HTTP errors instead of 500."""

import logging

from fastapi import HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException

logger = logging.getLogger(__name__)


class ClearErrors:
    """Mix-in for a `MONAILabelApp`, before it in the bases."""

    def infer(self, request, datastore=None):
        """As in MONAI Label; unknown images answer 404, unknown models and missing fields 400."""
        try:
            return super().infer(request, datastore)
        except ImageNotFoundException as e:
            raise HTTPException(404, str(e.msg)) from e
        except MONAILabelException as e:
            if e.error == MONAILabelError.INVALID_INPUT:
                raise HTTPException(400, str(e.msg)) from e
            raise
