"""Whatever the grid, units and format of an image: a mask of its block lies there for SimpleITK, nibabel and highdicom."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lib.common.errors import UserError, VolumeError
from lib.imaging.dicom.segmentations import read_segmentation, write_segmentation
from lib.imaging.dicom.stacks import find_stacks
from lib.imaging.readers import read_grid, read_mask, read_volume
from lib.imaging.study_files import LABEL_ENDINGS
from lib.imaging.writers import write_image, write_mask
from tests.conftest import DIRECTIONS
from tests.imaging.block_checks import affine_of_itk
from tests.imaging.real_cases import (
    BRIGHT,
    LPS,
    dicom_file,
    frame_points,
    multiframe,
    nrrd_fields,
    save_dicom,
    series,
    write_metaimage,
    write_nifti,
    write_nrrd,
)

FEW = settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
NRRD_SPACES = {"left-posterior-superior": (1, 1), "right-anterior-superior": (-1, -1), "left-anterior-superior": (1, -1)}
SHEAR = 0.02  # Above this, ITK does not read a NIfTI file.


@dataclass
class Case:
    """An image with a bright block.

    Attributes:
        array: int16 (I, J, K).
        affine: (4, 4), from voxels to mm LPS.
        centre_mm: Centre (3,) of the block in mm LPS.
        is_sheared: Whether the axes are not perpendicular.
    """

    array: np.ndarray
    affine: np.ndarray
    centre_mm: np.ndarray
    is_sheared: bool

    @property
    def tolerance_mm(self) -> float:
        """A tenth of the smallest side of a voxel."""
        return 0.1 * np.linalg.norm(self.affine[:3, :3], axis=0).min()

    def stored(self, mm: float) -> np.ndarray:
        """Return the affine in a unit of so many mm."""
        return np.diag([1 / mm] * 3 + [1]) @ self.affine


@st.composite
def cases(draw, *, smallest_mm=0.01, in_plane_shear=True) -> Case:
    """Draw an image: any of the 48 orientations, turned or not, sheared or not, of any shape, spacing and origin."""
    directions = DIRECTIONS[draw(st.sampled_from(sorted(DIRECTIONS)))]
    if draw(st.booleans()):
        directions = Rotation.from_euler("xz", [draw(st.floats(-0.7, 0.7)) for _ in range(2)]).as_matrix() @ directions
    is_sheared, shear = draw(st.booleans()), np.eye(3)
    if is_sheared:
        shear[0, 1], shear[0, 2], shear[1, 2] = (draw(st.floats(SHEAR, 0.5)) * draw(st.sampled_from((-1, 1))) for _ in range(3))
        shear[0, 1] *= in_plane_shear
    sizes_mm = [draw(st.floats(smallest_mm, 9.0)) for _ in range(3)]
    axes = directions @ shear
    affine = np.eye(4)
    affine[:3, :3] = axes / np.linalg.norm(axes, axis=0) * sizes_mm
    affine[:3, 3] = [draw(st.floats(-900, 900)) * smallest_mm * 10 for _ in range(3)]
    shape = np.array([draw(st.integers(4, 9)) for _ in range(3)])
    low = np.array([draw(st.integers(0, n - 2)) for n in shape])
    high = np.array([draw(st.integers(a + 1, min(a + 3, n))) for a, n in zip(low, shape, strict=True)])
    array = np.random.default_rng(0).integers(0, 100, shape).astype(np.int16)
    array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1000
    centre = affine[:3, :3] @ ((low + high - 1) / 2) + affine[:3, 3]
    return Case(array, affine, centre, is_sheared)


def centre_of(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(array > 0).mean(0) + affine[:3, 3]


def assert_mask_lies_right(path: Path, case: Case) -> None:
    """Check the centre of a mask as SimpleITK, nibabel and pynrrd see it, as far as they read its format."""
    found = {}
    is_nifti = path.name.endswith((".nii", ".nii.gz"))
    if is_nifti:
        image = nib.load(path)
        found["nibabel"] = centre_of(np.asarray(image.dataobj), LPS @ image.affine)
    if path.name.endswith(".nrrd"):
        array, header = nrrd.read(str(path))
        found["pynrrd"] = header["space origin"] + np.argwhere(array).mean(0) @ header["space directions"]
    if not (is_nifti and case.is_sheared):
        found["SimpleITK"] = centre_of(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0), affine_of_itk(path))
    assert found
    for reader, centre_mm in found.items():
        assert np.linalg.norm(centre_mm - case.centre_mm) < case.tolerance_mm, reader


def assert_answers_lie_right(path: Path, case: Case, folder: Path) -> None:
    """Read an image, write the mask of its block in every format, and check where it lies; read it back as a label of the image."""
    volume = read_volume(path)
    np.testing.assert_allclose(read_grid(path).affine, volume.affine, rtol=1e-6, atol=1e-9)
    mask = volume.array > BRIGHT
    for ending in LABEL_ENDINGS:
        try:
            written = write_mask(mask, volume, folder / f"mask{ending}")
        except UserError:  # A sheared mask need not be written in a format that the clients cannot read.
            assert case.is_sheared and ending in (".nii", ".nii.gz")
            continue
        assert_mask_lies_right(written, case)
        np.testing.assert_array_equal(read_mask(written, volume), mask)
    image = write_image(volume, folder / "image.nrrd")  # what a client downloads of a DICOM series
    assert np.linalg.norm(centre_of(read_volume(image).array > BRIGHT, affine_of_itk(image)) - case.centre_mm) < case.tolerance_mm


@pytest.fixture
def folder(tmp_path):
    """Return a function that returns a new folder, because hypothesis runs a test many times."""
    return lambda: Path(tempfile.mkdtemp(dir=tmp_path))


@FEW
@given(case=cases(), ending=st.sampled_from((".nii", ".nii.gz")), unit=st.sampled_from((("mm", 1), ("micron", 1e-3), ("meter", 1000))),
       codes=st.sampled_from(((1, 1), (1, 0), (0, 1), (0, 2), (3, 0))))  # fmt: skip
def test_nifti(folder, case, ending, unit, codes):
    place, (name, mm) = folder(), unit
    qform_code, sform_code = (0, 1) if case.is_sheared else codes
    path = write_nifti(place / f"image{ending}", case.array, case.stored(mm), unit=name, qform_code=qform_code, sform_code=sform_code)
    assert_answers_lie_right(path, case, place)


@FEW
@given(case=cases(), space=st.sampled_from(sorted(NRRD_SPACES)), unit=st.sampled_from((("mm", 1), ("um", 1e-3), ("cm", 10))))
def test_nrrd(folder, case, space, unit):
    place, (name, mm) = folder(), unit
    stored = np.diag([*NRRD_SPACES[space], 1, 1]) @ case.stored(mm)
    path = write_nrrd(place / "image.nrrd", nrrd_fields(stored, space=space, space_units=" ".join([f'"{name}"'] * 3)), case.array)
    assert_answers_lie_right(path, case, place)


@FEW
@given(case=cases(), ending=st.sampled_from((".mha", ".mhd")), unit=st.sampled_from((("mm", 1), ("um", 1e-3))))
def test_metaimage(folder, case, ending, unit):
    place, (name, mm) = folder(), unit
    stored = case.stored(mm)
    sizes = np.linalg.norm(stored[:3, :3], axis=0)
    texts = [" ".join(f"{v:.12g}" for v in values) for values in ((stored[:3, :3] / sizes).T.ravel(), stored[:3, 3], sizes)]
    fields = dict(zip(("TransformMatrix", "Offset", "ElementSpacing"), texts, strict=True)) | {"DistanceUnits": name}
    path = write_metaimage(place / f"image{ending}", fields, case.array, data_file="LOCAL" if ending == ".mha" else "image.raw")
    assert_answers_lie_right(path, case, place)


@FEW
@given(case=cases(smallest_mm=0.2, in_plane_shear=False), is_multiframe=st.booleans(), seed=st.integers(0, 99))
def test_dicom(folder, case, is_multiframe, seed):
    place = folder()
    images = series(case.affine, case.array)
    images = [images[n] for n in np.random.default_rng(seed).permutation(len(images))]
    if is_multiframe:
        path = dicom_file(multiframe(images), place / "object.dcm")
    else:
        path = save_dicom(images, place / "series")
    assert_answers_lie_right(path, case, place)
    (stack,) = find_stacks(path)
    mask = read_volume(path).array > BRIGHT
    written = write_segmentation(mask.astype(np.uint8), stack, {1: "肝, links"}, place / "seg.dcm")
    frames = frame_points(hd.seg.segread(written))
    assert np.linalg.norm(np.concatenate([points for _, points in frames]).mean(0) - case.centre_mm) < case.tolerance_mm
    slices_mm = np.array([ds.ImagePositionPatient for ds in images], float)
    assert max(np.linalg.norm(slices_mm - position, axis=1).min() for position, _ in frames) < 0.01
    labels, names = read_segmentation(written, stack)
    np.testing.assert_array_equal(labels, mask)
    assert names == {1: "肝, links"}


@settings(FEW, max_examples=60)
@given(data=st.data(), qform=cases(), sform=cases(), unit=st.sampled_from(("mm", "micron", "meter", "unknown")))
def test_nifti_headers_are_read_as_itk_reads_them(folder, data, qform, sform, unit):
    """Any codes, and qform and sform that have nothing to do with each other."""
    assume(not qform.is_sheared)
    codes = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    path = write_nifti(
        folder() / "image.nii", sform.array, sform.affine, qform=qform.affine, qform_code=codes[0], sform_code=codes[1], unit=unit,
    )  # fmt: skip
    try:
        affine = affine_of_itk(path)
    except RuntimeError:  # ITK refuses shear.
        assume(False)
    tolerance = 1e-3 * np.linalg.norm(affine[:3, :3], axis=0).min()
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(sform.array.shape) - 1)
    try:
        volume = read_volume(path)
    except VolumeError:  # ITK takes the qform without a word if the sform is sheared.
        assert sform.is_sheared
        return
    offsets = np.column_stack([corners, np.ones(8)]) @ (LPS @ volume.affine - affine).T
    assert np.abs(offsets).max() < tolerance
