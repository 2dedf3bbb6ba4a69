"""Multi-frame DICOM objects as real people have them: frames lie where the object places them, or it is refused with the reason."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    NuclearMedicineImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from lib.common.errors import VolumeError
from lib.imaging.readers import read_volume
from lib.imaging.writers import write_mask
from tests.imaging.block_checks import affine_of_itk, assert_block_lies_right, assert_dicom_is_right
from tests.imaging.real_cases import (
    BRIGHT,
    IMAGE,
    LPS,
    OBLIQUE,
    SHAPE,
    copies,
    dicom_file,
    dicom_slice,
    lps_affine,
    multiframe,
    save_dicom,
    series,
    set_pixels,
    tilted_affine,
)

PLANES = {"straight": lps_affine(), "oblique": OBLIQUE, "backwards": OBLIQUE @ np.diag([1, 1, -1, 1]), "tilted": tilted_affine()}
SLICES = list(range(SHAPE[2]))
SHUFFLED = [int(n) for n in np.random.default_rng(4).permutation(SHAPE[2])]
ORDERS = {"ascending": SLICES, "descending": SLICES[::-1], "shuffled": SHUFFLED, "interleaved": SLICES[::2] + SLICES[1::2]}
ULTRASOUND_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"


def groups(ds):
    return ds.PerFrameFunctionalGroupsSequence


# --- where the frames lie --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("plane", PLANES)
def test_frames_are_sorted_by_position_alone(tmp_path, order, plane):
    affine = PLANES[plane]
    images = series(affine)
    path = dicom_file(multiframe([images[n] for n in ORDERS[order]]), tmp_path / "enhanced.dcm")
    volume = assert_dicom_is_right(path, affine)
    assert volume.shape == SHAPE
    assert {f.number for f in volume.source_frames} == set(range(1, 10))
    mask = write_mask(volume.array > BRIGHT, volume, tmp_path / "mask.nrrd")
    np.testing.assert_allclose(affine_of_itk(mask), LPS @ volume.affine, atol=1e-5)


@pytest.mark.parametrize("thickness, spacing_between", [("6", None), ("6", "6"), ("1", "-3"), ("", "0"), (None, "2.853")])
def test_thickness_and_spacing_do_not_place_frames(tmp_path, thickness, spacing_between):
    images = series(tilted_affine())
    for ds in images:
        ds.SliceThickness = thickness
    path = dicom_file(multiframe(images, spacing_between=spacing_between), tmp_path / "enhanced.dcm")
    assert_dicom_is_right(path, tilted_affine())


def test_what_all_frames_share_may_be_said_of_each(tmp_path):
    ds = multiframe(series(OBLIQUE))
    shared = ds.SharedFunctionalGroupsSequence[0]
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence", "PixelValueTransformationSequence"):
        for group in groups(ds):
            setattr(group, name, getattr(shared, name))
        delattr(shared, name)
    np.testing.assert_array_equal(assert_dicom_is_right(dicom_file(ds, tmp_path / "enhanced.dcm"), OBLIQUE).array, IMAGE)
    del ds.SharedFunctionalGroupsSequence
    assert_dicom_is_right(dicom_file(ds, tmp_path / "enhanced.dcm"), OBLIQUE)


def test_a_folder_with_one_object_and_a_volume_of_several_objects(tmp_path):
    images = series(OBLIQUE)
    dicom_file(multiframe(images), tmp_path / "one" / "IM1")
    assert_dicom_is_right(tmp_path / "one", OBLIQUE)
    parts = [multiframe(images[:4]), copies([multiframe(images[4:])], 1)[0]]
    assert_dicom_is_right(save_dicom(parts, tmp_path / "two"), OBLIQUE)


def test_an_object_of_one_frame(tmp_path):
    volume = read_volume(dicom_file(multiframe(series(OBLIQUE)[5:6]), tmp_path / "enhanced.dcm"))
    assert volume.shape == (14, 12, 1)
    np.testing.assert_allclose((LPS @ volume.affine)[:3, 3], OBLIQUE[:3] @ (0, 0, 5, 1), atol=1e-4)


# --- values ----------------------------------------------------------------------------------------------------------
def test_frames_have_slopes_of_their_own(tmp_path):
    ds = multiframe([series(OBLIQUE, intercept=0)[n] for n in SHUFFLED])
    slopes = 1 + np.arange(SHAPE[2]) / 8
    set_pixels(ds, np.stack([np.rint(IMAGE[:, :, n].T / slopes[n]).astype(np.uint16) for n in SHUFFLED]))
    del ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for n, group in zip(SHUFFLED, groups(ds), strict=True):
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = f"{slopes[n]:.6f}", "0", "US"
        group.PixelValueTransformationSequence = [item]
    volume = assert_dicom_is_right(dicom_file(ds, tmp_path / "enhanced.dcm"), OBLIQUE)
    assert np.abs(volume.array - IMAGE).max() <= 1.01


# --- refused ---------------------------------------------------------------------------------------------------------
def change_group(index, name, **fields):
    def apply(ds):
        for n, group in enumerate(groups(ds)):
            if index in (n, None):
                for keyword, value in fields.items():
                    setattr(getattr(group, name)[0], keyword, value)

    return apply


def moved(index, position):
    return change_group(index, "PlanePositionSequence", ImagePositionPatient=position)


def shared(name, **fields):
    return lambda ds: [setattr(getattr(ds.SharedFunctionalGroupsSequence[0], name)[0], k, v) for k, v in fields.items()]


def without_shared(name):
    return lambda ds: delattr(ds.SharedFunctionalGroupsSequence[0], name)


REFUSED = {
    "a gap": (SLICES[:4] + SLICES[6:], lambda ds: None, "evenly|missing"),
    "a frame twice": ([*SLICES, 4], lambda ds: None, "twice|same position"),
    "all at one position": (SLICES, moved(None, ["-20", "13", "40"]), "same position"),
    "a frame beside the others": (SLICES, moved(4, ["-16", "13", "52"]), "beside|line"),
    "an empty position": (SLICES, moved(4, None), "ImagePositionPatient"),
    "a position of two numbers": (SLICES, moved(4, ["1", "2"]), "ImagePositionPatient"),
    "no orientation": (SLICES, without_shared("PlaneOrientationSequence"), "ImageOrientationPatient"),
    "an orientation of zeros": (SLICES, shared("PlaneOrientationSequence", ImageOrientationPatient=["0"] * 6), "ImageOrientationPatient"),
    "no pixel spacing": (SLICES, without_shared("PixelMeasuresSequence"), "PixelSpacing"),
    "too few groups": (SLICES, lambda ds: groups(ds).pop(), "incomplete|frames"),
    "too many frames": (SLICES, lambda ds: setattr(ds, "NumberOfFrames", 12), "incomplete|frames"),
    "no pixels": (SLICES, lambda ds: delattr(ds, "PixelData"), "pixels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_objects_that_are_refused_with_the_reason(tmp_path, kind):
    frames, change, words = REFUSED[kind]
    images = series()
    ds = multiframe([images[n] for n in frames])
    change(ds)
    with pytest.raises(VolumeError, match=words) as e:
        read_volume(dicom_file(ds, tmp_path / "enhanced.dcm"))
    assert str(e.value).endswith(".") and str(tmp_path) not in str(e.value)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_truncated_object_is_refused(tmp_path, share):
    path = dicom_file(multiframe(series()), tmp_path / "enhanced.dcm")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(VolumeError):
        read_volume(path)


# --- several volumes -------------------------------------------------------------------------------------------------
def set_echo(group, n):
    item = Dataset()
    item.EffectiveEchoTime = 10.0 * (n + 1)
    group.MREchoSequence = [item]


def set_b_value(group, n):
    item = Dataset()
    item.DiffusionBValue = 500.0 * n
    group.MRDiffusionSequence = [item]


def set_heart_phase(group, n):
    item = Dataset()
    item.NominalPercentageOfCardiacPhase = 40.0 * n
    group.CardiacSynchronizationSequence = [item]


MARKS = {
    "echoes": set_echo, "b-values": set_b_value, "heart phases": set_heart_phase,
    "time points": lambda group, n: setattr(group.FrameContentSequence[0], "TemporalPositionIndex", n + 1),
    "stacks": lambda group, n: setattr(group.FrameContentSequence[0], "StackID", str(n + 1)), "no mark": lambda group, n: None,
}  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_phases_and_echoes_are_volumes_of_their_own(tmp_path, mark, interleaved):
    volumes = [series(OBLIQUE, IMAGE + n) for n in range(2)]
    marked = [(n, ds) for n, images in enumerate(volumes) for ds in images]
    if interleaved:
        marked = [pair for k in SLICES for pair in (marked[k], marked[k + len(SLICES)])]
    ds = multiframe([image for _, image in marked], sop_class=EnhancedMRImageStorage)
    for group, (n, _) in zip(groups(ds), marked, strict=True):
        MARKS[mark](group, n)
    path = dicom_file(ds, tmp_path / "heart.dcm")
    with pytest.raises(VolumeError, match="2 volumes.*heart.dcm#1 .*heart.dcm#2 "):
        read_volume(path)
    for n in range(2):
        volume = assert_dicom_is_right(tmp_path / f"heart.dcm#{n + 1}", OBLIQUE)
        np.testing.assert_array_equal(volume.array, IMAGE + n)


def test_one_object_for_each_phase(tmp_path):
    objects = [multiframe(series(OBLIQUE)), copies([multiframe(series(OBLIQUE, IMAGE + 1))], 1)[0]]
    folder = save_dicom(objects, tmp_path / "heart")
    with pytest.raises(VolumeError, match="2 volumes"):
        read_volume(folder)
    for n in range(2):
        np.testing.assert_array_equal(assert_dicom_is_right(tmp_path / f"heart#{n + 1}", OBLIQUE).array, IMAGE + n)


def test_planes_of_several_orientations_are_volumes_of_their_own(tmp_path):
    ds = multiframe([*series(), *series(OBLIQUE)])
    orientation = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for n, group in enumerate(groups(ds)):
        item = Dataset()
        item.ImageOrientationPatient = orientation[0].ImageOrientationPatient if n < 9 else series(OBLIQUE)[0].ImageOrientationPatient
        group.PlaneOrientationSequence = [item]
    dicom_file(ds, tmp_path / "planes.dcm")
    with pytest.raises(VolumeError, match="2 volumes"):
        read_volume(tmp_path / "planes.dcm")
    assert_dicom_is_right(tmp_path / "planes.dcm#1", lps_affine())
    assert_dicom_is_right(tmp_path / "planes.dcm#2", OBLIQUE)


# --- objects that are not enhanced -----------------------------------------------------------------------------------
def plain_object(sop_class, modality) -> Dataset:
    """Return a multi-frame object whose frames k are the slices of the image, with pixel spacing but without a place."""
    ds = dicom_slice(np.zeros((12, 14), np.uint16), 1, sop_class=sop_class, modality=modality)
    set_pixels(ds, np.ascontiguousarray(IMAGE.T).astype(np.uint16))
    ds.NumberOfFrames, ds.PixelSpacing = SHAPE[2], ["2", "1.5"]
    return ds


def test_frames_of_a_ct_object_without_a_slice_distance_need_the_voxel_size(tmp_path):
    ds = plain_object(CTImageStorage, "CT")
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.SliceThickness = ["-20", "13", "40"], ["1", "0", "0", "0", "1", "0"], "3"
    path = dicom_file(ds, tmp_path / "cbct.dcm")
    with pytest.raises(VolumeError, match=r"--spacing 1.5,2,"):
        read_volume(path)
    volume = read_volume(path, spacing_mm=(1.5, 2, 3))
    assert_block_lies_right(volume, lps_affine())
    assert volume.warnings


@pytest.mark.parametrize("distance", [3.0, -3.0])
def test_nuclear_medicine(tmp_path, distance):
    ds, detector = plain_object(NuclearMedicineImageStorage, "NM"), Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = ["-20", "13", "40"], ["1", "0", "0", "0", "1", "0"]
    ds.DetectorInformationSequence, ds.SpacingBetweenSlices, ds.SliceVector = [detector], distance, list(range(1, 10))
    ds.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    affine = lps_affine(np.diag([1, 1, np.sign(distance)]))
    assert_block_lies_right(read_volume(dicom_file(ds, tmp_path / "nm.dcm")), affine)


@pytest.mark.parametrize("sop_class, frames", [(UltrasoundImageStorage, 1), (UltrasoundMultiFrameImageStorage, 9)])
def test_ultrasound_takes_its_pixel_size_from_its_region(tmp_path, sop_class, frames):
    ds, region = plain_object(sop_class, "US"), Dataset()
    del ds.PixelSpacing
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX, region.PhysicalDeltaY, region.RegionSpatialFormat = 0.15, 0.2, 1
    ds.SequenceOfUltrasoundRegions, ds.NumberOfFrames = [region], frames
    if frames == 1:
        set_pixels(ds, np.ascontiguousarray(IMAGE[:, :, 5].T).astype(np.uint16))
        del ds.NumberOfFrames
    path = dicom_file(ds, tmp_path / "us.dcm")
    if frames > 1:  # The frames of a film have no distance.
        with pytest.raises(VolumeError, match=r"--spacing 1.5,2,"):
            read_volume(path)
        return
    volume = read_volume(path)
    np.testing.assert_allclose(volume.spacing_mm[:2], (1.5, 2))
    assert volume.warnings, "its position is unknown"


def test_a_volume_of_ultrasound_has_a_frame_of_reference_of_its_own(tmp_path):
    ds = multiframe(series(OBLIQUE, intercept=0), sop_class=ULTRASOUND_VOLUME)
    shared = ds.SharedFunctionalGroupsSequence[0]
    item = Dataset()
    item.ImageOrientationVolume = [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    shared.PlaneOrientationVolumeSequence = [item]
    del shared.PlaneOrientationSequence
    for group in groups(ds):
        item = Dataset()
        item.ImagePositionVolume = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        group.PlanePositionVolumeSequence = [item]
        del group.PlanePositionSequence
    assert_block_lies_right(read_volume(dicom_file(ds, tmp_path / "us.dcm")), OBLIQUE)
