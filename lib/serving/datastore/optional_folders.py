"""Lets MONAI Label's datastore open a studies folder on a read-only disk, where it cannot make its folders for labels."""

import logging
import os

from monailabel.datastore import local

logger = logging.getLogger(__name__)


class _OptionalFolders:
    """The module `os` for MONAI Label's datastore, where a folder that cannot be made is only logged."""

    def __getattr__(self, name: str):
        return getattr(os, name)

    @staticmethod
    def makedirs(path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, mode, exist_ok)
        except OSError as e:
            logger.warning("Cannot make the folder %s: %s. Images can be read all the same, but labels cannot be saved.", path, e.strerror)


def make_folders_optional() -> None:
    """Let MONAI Label's datastore go on without the folders that it cannot make."""
    local.os = _OptionalFolders()
