"""Opening of volumes for *Next Sample*, which remembers the ones that cannot be read and why."""

import os
from collections.abc import Callable

import requests
from monailabel.interfaces.exception import MONAILabelException

from lib.common.errors import UserError, VolumeError
from lib.imaging.readers import read_volume
from lib.imaging.volume import Volume


class ReadableVolumes:
    """Opens volumes of a datastore by their ids. A file that could not be read is not tried again until it changes.

    Args:
        read: Returns the volume at a path, or raises UserError.
    """

    def __init__(self, read: Callable[[str], Volume] = read_volume):
        self._read = read
        self._problems: dict[str, tuple[tuple | None, str]] = {}  # By id: the version of the file that was tried, and the reason.

    def open(self, image: str, datastore) -> Volume:
        """Return a volume.

        Raises:
            VolumeError: It cannot be read; the message says why.
            requests.RequestException: The DICOM store does not answer.
        """
        version = None
        try:
            path = datastore.get_image_uri(image)
            stat = os.stat(path)
            version = path, stat.st_size, stat.st_mtime_ns
            if image in self._problems and self._problems[image][0] == version:
                raise VolumeError(self._problems[image][1])
            volume = self._read(path)
        except (requests.ConnectionError, requests.Timeout):
            raise
        except (UserError, OSError, MemoryError, MONAILabelException) as e:
            reason = _reason(e)
            self._problems[image] = version, reason
            raise VolumeError(reason) from e
        self._problems.pop(image, None)
        return volume

    def problems(self) -> dict[str, str]:
        """Return the reasons by id of the volumes that could not be read when they were last tried."""
        return {image: reason for image, (_, reason) in self._problems.items()}


def _reason(error: Exception) -> str:
    """Return what a user should read of an error that occurred when a volume was opened."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MONAILabelException):
        return str(error.msg)
    if isinstance(error, requests.RequestException):
        return "The DICOM store refused it; see the server's log."
    if isinstance(error, MemoryError):
        return "It does not fit into the server's memory."
    return "Its file is gone or cannot be opened."
