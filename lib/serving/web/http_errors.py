"""Conversion of exceptions to HTTP errors with a status and a sentence for the user; the details go to the log."""

import errno
import logging
from contextlib import contextmanager

import filelock
import requests
import torch
from fastapi import HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException

from lib.common.errors import ConflictError, UserError, VolumeError

logger = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BAD_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EINVAL)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
# MONAI Label's own functions raise these for fields of a wrong type.
MISUSE = (TypeError, ValueError, OverflowError, LookupError, AttributeError, RecursionError, EOFError)


@contextmanager
def clear_errors(wrong: int = 422, *, loose: bool = False, upload: bool = False):
    """Turn exceptions of the code within into HTTP errors.

    Args:
        wrong: HTTP status for wrong input.
        upload: True if the request brings an image or a label, so that one that cannot be read is wrong input.
        loose: True if the code does not check its input itself, so that the exceptions `MISUSE` count as wrong input as well.

    Raises:
        HTTPException: `wrong` for wrong input, 400 for an image of the server that cannot be opened and for MONAI Label's other errors, 404
            for an unknown image or label, 409 for what contradicts what is there, 502 if the DICOM store failed, 503 if memory ran out or
            the folder is locked, 507 if the disk is full, 500 for other errors of the file system.
    """
    try:
        yield
    except UserError as e:
        logger.info("Refused: %s", e)
        status = 409 if isinstance(e, ConflictError) else 400 if isinstance(e, VolumeError) and not upload else wrong
        raise HTTPException(status, str(e)) from e
    except (ImageNotFoundException, LabelNotFoundException) as e:
        raise HTTPException(404, str(e.msg)) from e
    except MONAILabelException as e:
        raise HTTPException(400, str(e.msg)) from e
    except requests.RequestException as e:
        logger.warning("DICOM store: %s", e)
        raise HTTPException(502, "The DICOM store does not answer or refused; see the server's log.") from e
    except filelock.Timeout as e:
        raise HTTPException(503, "Another server holds the folder's lock; try again.") from e
    except (MemoryError, torch.OutOfMemoryError, OSError) as e:
        raise _resource_error(e) from e
    except MISUSE as e:
        if not loose:
            raise
        logger.warning("Not understood", exc_info=True)
        raise HTTPException(wrong, "The request was not understood: a field has a wrong type or value.") from e


def _resource_error(e: Exception) -> HTTPException:
    """Log an error of the memory or of the file system, and return the HTTP error for it."""
    code = e.errno if isinstance(e, OSError) else errno.ENOMEM
    if code == errno.ENOMEM:
        logger.exception("Out of memory")
        return HTTPException(503, "The server ran out of memory; try device cpu, or fewer slices by z_range.")
    if code in DISK_FULL:
        logger.exception("Disk full")
        return HTTPException(507, "The server's disk is full.")
    if code in BAD_NAME:
        return HTTPException(422, "This name cannot be used for a file.")
    logger.exception("File system")
    if code in NOT_WRITABLE:
        return HTTPException(500, "The server could not write: its folder is read-only.")
    return HTTPException(500, "The server could not read or write a file; see its log.")
