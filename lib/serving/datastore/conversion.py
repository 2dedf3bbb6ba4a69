"""Images as single files that every client reads: DICOM and other files that 3D Slicer would not read, or not alike, become NRRD."""

import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from monailabel.config import settings

from lib.common.errors import VolumeError
from lib.imaging import geometry
from lib.imaging.formats.nifti import nifti_header
from lib.imaging.readers import READ_ERRORS, read_grid
from lib.imaging.study_files import IMAGE_ENDINGS, split_ending
from lib.imaging.study_images import StudyImage
from lib.imaging.writers import write_image

CONVERTED_ENDING = ".nrrd"
_ITK_SHEAR = 1e-4  # Axes of NIfTI files that deviate more from a right angle are not ITK's, because it refuses such files.

logger = logging.getLogger(__name__)


class ConvertedImages:
    """Images of a studies folder that were converted to NRRD, in a cache that only this user can read.

    Args:
        studies: The studies folder. Nothing is written there.

    Attributes:
        folder: The cache.
    """

    def __init__(self, studies: str | Path):
        digest = hashlib.blake2b(os.path.realpath(studies).encode(errors="replace"), digest_size=8).hexdigest()
        home = os.environ.get("HOME") or tempfile.gettempdir()
        self.folder = Path(settings.MONAI_LABEL_DATASTORE_CACHE_PATH.strip() or Path(home, ".cache", "monailabel"), "studies", digest)
        self._lock = threading.Lock()  # Requests for one image must not convert it twice.
        self._needed: dict[str, bool] = {}  # Whether an image of a version must be converted.

    def is_needed(self, image: StudyImage) -> bool:
        """Return whether clients need an image to be converted; the header is read once for each version."""
        if image.version not in self._needed:
            self._needed[image.version] = _is_needed(image)
        return self._needed[image.version]

    def path(self, name: str, image: StudyImage) -> Path:
        """Return the file of an image for clients: its own, or the converted one, which may not exist yet.

        Args:
            name: Id of the image, and name of the converted file.
        """
        return self.folder / image.version / f"{name}{CONVERTED_ENDING}" if self.is_needed(image) else image.path

    def provide(self, name: str, image: StudyImage) -> Path:
        """Return the file of an image for clients, which is made if it is missing. Arguments are those of `path`.

        Raises:
            VolumeError: A DICOM image cannot be read.
            OSError: The disk is full.
        """
        if not self.is_needed(image):
            return image.path
        with self._lock:
            if self.path(name, image).exists():
                return self.path(name, image)
            try:
                volume = image.read(name)
            except VolumeError:
                if image.stack is not None:
                    raise
                return image.path  # The engine says what is wrong, or chooses a channel.
            try:
                self._make_private_folder()
            except OSError as e:
                self.folder = Path(tempfile.mkdtemp(prefix="monailabel_studies_"))
                logger.warning("Converted images are kept in %s, because the cache cannot be written to: %s", self.folder, e)
            return write_image(volume, self.path(name, image))

    def keep_only(self, images: Collection[StudyImage]) -> None:
        """Remove the files of images that are gone or have changed."""
        versions = {image.version for image in images}
        self._needed = {version: needed for version, needed in self._needed.items() if version in versions}
        for folder in self.folder.glob("*/"):
            if folder.name not in versions:
                shutil.rmtree(folder, ignore_errors=True)

    def _make_private_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)


def _is_needed(image: StudyImage) -> bool:
    """Return whether 3D Slicer (ITK) would not read an image, or see it at another place than the readers here do."""
    ending = split_ending(image.path.name, IMAGE_ENDINGS)[1]
    if image.stack is not None or len(image.files) > 1 or ending not in (".nii.gz", ".nii", ".nrrd", ".mha"):
        return True  # The ending may be one in upper case.
    try:
        if ending.startswith(".nii"):
            with open(image.path, "rb") as file:
                is_compressed = file.read(2) == b"\x1f\x8b"
            header = nifti_header(image.path)
            if isinstance(header, nib.Nifti2Header) or (is_compressed and ending == ".nii"):
                return True
            may_be_sheared = header["sform_code"] > 0 and geometry.has_shear(header.get_sform(), _ITK_SHEAR)
            return bool(may_be_sheared and geometry.has_shear(read_grid(image.path).affine, _ITK_SHEAR))
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(image.path))
        reader.ReadImageInformation()
        if reader.GetDimension() != 3:
            return False
        affine = geometry.ras_from_itk(reader.GetOrigin(), reader.GetSpacing(), reader.GetDirection())
        return not np.allclose(affine, read_grid(image.path).affine, atol=1e-3)
    except READ_ERRORS:  # Among these is VolumeError. The engine says what is wrong.
        return False
