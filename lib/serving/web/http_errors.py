"""What goes wrong, as an HTTP status with a sentence; details go to the log."""

import errno
import logging
from contextlib import contextmanager

import filelock
import requests
import torch
from fastapi import HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException

from lib.common.errors import UserError

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NAMES = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EINVAL)
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
# What MONAI Label's own functions raise on fields of a wrong kind.
MISUSE = (TypeError, ValueError, OverflowError, LookupError, AttributeError, RecursionError, EOFError)


@contextmanager
def clear_errors(wrong: int = 422, *, loose: bool = False):
    """Sentences instead of tracebacks.

    Args:
        wrong: status of wrong input.
        loose: the code below does not check its input, so errors of kind `MISUSE` count as wrong input, too.

    Raises:
        HTTPException: `wrong`, 404 unknown image or label, 502 the DICOM store failed, 503 out of memory, 507 disk full,
            500 other errors of the file system.
    """
    try:
        yield
    except HTTPException:
        raise
    except UserError as e:
        logger.info("Refused: %s", e)
        raise HTTPException(wrong, str(e)) from e
    except (ImageNotFoundException, LabelNotFoundException) as e:
        raise HTTPException(404, str(e.msg)) from e
    except MONAILabelException as e:
        raise HTTPException(400, str(e.msg)) from e
    except (MemoryError, torch.OutOfMemoryError) as e:
        raise _of_memory() from e
    except requests.RequestException as e:
        logger.warning("DICOM store: %s", e)
        raise HTTPException(502, "The DICOM store does not answer or refused; see the server's log.") from e
    except filelock.Timeout as e:
        raise HTTPException(503, "Another server holds the folder's lock; try again.") from e
    except OSError as e:
        raise (_of_memory() if e.errno == errno.ENOMEM else _of_files(e)) from e
    except MISUSE as e:
        if not loose:
            raise
        logger.warning("Not understood", exc_info=True)
        raise HTTPException(wrong, "The request was not understood: a field has a wrong type or value.") from e


def _of_memory() -> HTTPException:
    logger.exception("Out of memory")
    return HTTPException(503, "The server ran out of memory; try device cpu, or fewer slices by z_range.")


def _of_files(e: OSError) -> HTTPException:
    if e.errno in FULL:
        logger.exception("Disk full")
        return HTTPException(507, "The server's disk is full.")
    if e.errno in NAMES:
        return HTTPException(422, "This name cannot be used for a file.")
    logger.exception("File system")
    if e.errno in DENIED:
        return HTTPException(500, "The server could not write: its folder is read-only.")
    return HTTPException(500, "The server could not read or write a file; see its log.")
