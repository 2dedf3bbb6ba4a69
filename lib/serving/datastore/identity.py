"""Which content an image of a studies folder has, and whether that has been exchanged under the image's id."""

from contextlib import suppress

from monailabel.datastore.local import DataModel

from lib.imaging.study_images import StudyImage, file_stamp
from lib.serving.datastore.history import DIGEST

STAMP = "stamp"  # Field of an image's info: changes when one of its files does, so that its digest must be made anew.


class ImageIdentities:
    """The digests of images, which are made again only when a file has changed."""

    def __init__(self):
        self._digests: dict[str, str] = {}  # By the stamps of the files.

    def digest(self, image: StudyImage | None) -> str:
        """Return the digest of an image's content at this moment, or "" if there is no image or it cannot be read."""
        with suppress(OSError):
            if image is not None:
                stamp = file_stamp(image.files)
                if stamp not in self._digests:
                    self._digests[stamp] = image.digest()
                return self._digests[stamp]
        return ""

    def is_exchanged(self, entry: DataModel, image: StudyImage) -> bool:
        """Return whether an image has another content than its entry says; False if the entry says nothing, or it cannot be read."""
        known = str(entry.info.get(DIGEST) or "")
        with suppress(OSError):
            if known and file_stamp(image.files) != entry.info.get(STAMP):
                return self.digest(image) not in ("", known)
        return False

    def noted(self, entry: DataModel, image: StudyImage) -> DataModel:
        """Return an image's entry with the digest of its content and the stamp of its files."""
        with suppress(OSError):
            if (stamp := file_stamp(image.files)) != entry.info.get(STAMP):
                return entry.model_copy(update={"info": {**entry.info, DIGEST: self.digest(image), STAMP: stamp}})
        return entry
