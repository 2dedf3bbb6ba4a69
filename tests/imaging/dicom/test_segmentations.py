"""Tests of DICOM SEG: segments lie on the slices of their source, whatever its kind, and are read from whoever wrote them."""

from copy import deepcopy
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from lib.common.errors import VolumeError
from lib.imaging.dicom.segmentations import read_segmentation, write_segmentation
from lib.imaging.dicom.stacks import find_stacks
from tests.imaging.dicom import dcmqi
from tests.imaging.dicom.series import OBLIQUE, SHAPE, SPACING_MM, WRITERS, positions_mm

NAMES = {2: "肝臟", 5: "Große Zyste in der Leber, Segment Ⅳ"}


def make_stack(folder: Path, kind: str = "single frames", tilt_mm: float = 0.0, **attributes):
    WRITERS[kind](folder / "series", tilt_mm, **attributes)
    return find_stacks(folder / "series")[0]


def make_labels() -> np.ndarray:
    """Return a label map that no flip or exchange of axes leaves as it is, empty on the first and the fourth slice."""
    labels = np.zeros(SHAPE, np.int32)
    labels[1:5, 2:4, 1:3] = 2
    labels[7:9, 5:9, 4:] = 5
    labels[0, 0, 1] = 5
    return labels


@pytest.mark.parametrize("tilt_mm", [0.0, 0.8], ids=["straight", "tilted"])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_frame_lies_on_its_source_slice(tmp_path, kind, tilt_mm):
    stack, labels = make_stack(tmp_path, kind, tilt_mm), make_labels()
    path = write_segmentation(labels, stack, NAMES, tmp_path / "seg.dcm", colors={2: (221, 130, 101)})
    seg = hd.seg.segread(path)
    assert {s.SegmentLabel for s in seg.SegmentSequence} == set(NAMES.values()) and seg.SeriesInstanceUID != stack.series_uid
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == stack.series_uid and seg.SpecificCharacterSet == "ISO_IR 192"
    assert len(seg.SegmentSequence[0].RecommendedDisplayCIELabValue) == 3
    places = {(f.sop_instance_uid, f.number): k for k, f in enumerate(stack.frames)}
    read = np.zeros(SHAPE, np.int32)
    for plane, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        k = places[source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber", 1)]
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        assert np.abs(position - positions_mm(tilt_mm)[k]).max() < 0.01
        read[:, :, k][plane.T > 0] = sorted(NAMES)[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
    assert (read == labels).all() and ("ReferencedFrameNumber" in source) == (kind == "multi-frame")
    read, names = read_segmentation(path, stack)
    assert names == dict(enumerate(NAMES.values(), 1)) and (read == np.searchsorted([0, 2, 5], labels)).all()


def test_patient_and_study_are_those_of_the_source(tmp_path):
    patient = {"PatientName": "王^小東", "PatientID": "7", "StudyDescription": "Überweisung", "PatientSex": "F", "StudyDate": "20260101",
               "FrameOfReferenceUID": "1.2.3.9", "SpecificCharacterSet": "GB18030"}  # fmt: skip
    stack = make_stack(tmp_path, **patient)
    seg = pydicom.dcmread(write_segmentation(make_labels(), stack, NAMES, tmp_path / "seg.dcm"))
    for keyword, value in patient.items():
        if keyword != "SpecificCharacterSet":
            assert str(seg[keyword].value) == value
    assert seg.StudyInstanceUID == "1.2.3.1" and seg.AccessionNumber == seg.StudyID == ""


def test_values_that_dicom_does_not_allow_become_empty(tmp_path):
    with pydicom.config.disable_value_validation():
        stack = make_stack(tmp_path, PatientSex="unknown", StudyDate="2026-1-1", PatientName="no caret", PatientBirthDate="?")
    seg = hd.seg.segread(write_segmentation(make_labels(), stack, {}, tmp_path / "seg.dcm"))
    assert seg.PatientSex == "" and not seg.StudyDate and not seg.PatientBirthDate and seg.PatientName == "no caret"
    assert seg.FrameOfReferenceUID and [s.SegmentLabel for s in seg.SegmentSequence] == ["segment 2", "segment 5"]


def test_long_names_are_cut(tmp_path):
    stack = make_stack(tmp_path)
    seg = pydicom.dcmread(write_segmentation(make_labels(), stack, {2: "ä" * 80, 5: "a\\b\nc"}, tmp_path / "seg.dcm"))
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["ä" * 64, "a b c"]


def test_nothing_private_is_written(tmp_path):
    stack = make_stack(tmp_path)
    path = write_segmentation(make_labels(), stack, NAMES, tmp_path / "seg.dcm")
    assert str(tmp_path).encode() not in path.read_bytes()


def test_labels_that_cannot_be_written_are_refused(tmp_path):
    stack, labels = make_stack(tmp_path), make_labels()
    for wrong, message in ((labels * 0, "empty"), (labels[1:], "has shape"), (-labels, "-5")):
        with pytest.raises(VolumeError, match=message):
            write_segmentation(wrong, stack, NAMES, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def written(tmp_path):
    """Return a DICOM SEG to be changed, and its stack."""
    stack = make_stack(tmp_path)
    return pydicom.dcmread(write_segmentation(make_labels(), stack, NAMES, tmp_path / "seg.dcm")), stack


def shared(seg: Dataset, group: str) -> Dataset:
    return seg.SharedFunctionalGroupsSequence[0][group].value[0]


def test_frames_with_flipped_rows_and_exchanged_axes_are_placed_by_their_geometry(tmp_path):
    seg, stack = written(tmp_path)
    pixels = seg.pixel_array
    x, y = np.reshape(shared(seg, "PlaneOrientationSequence").ImageOrientationPatient, (2, 3)).astype(float)
    row_mm, column_mm = map(float, shared(seg, "PixelMeasuresSequence").PixelSpacing)
    changed = pixels[:, :, ::-1].transpose(0, 2, 1)  # New rows are old columns, backwards.
    shared(seg, "PlaneOrientationSequence").ImageOrientationPatient = [*y, *-x]
    shared(seg, "PixelMeasuresSequence").PixelSpacing = [column_mm, row_mm]
    for groups in seg.PerFrameFunctionalGroupsSequence:
        plane = groups.PlanePositionSequence[0]
        plane.ImagePositionPatient = (np.array(plane.ImagePositionPatient, float) + x * column_mm * (SHAPE[0] - 1)).tolist()
    seg.Rows, seg.Columns = seg.Columns, seg.Rows
    seg.PixelData = np.packbits(changed.ravel(), bitorder="little").tobytes()
    seg.save_as(tmp_path / "seg.dcm")
    assert (read_segmentation(tmp_path / "seg.dcm", stack)[0] == np.searchsorted([0, 2, 5], make_labels())).all()


def test_fractional_segments_count_from_a_half(tmp_path):
    seg, stack = written(tmp_path)
    pixels = seg.pixel_array.astype(np.uint8)
    seg.SegmentationType, seg.MaximumFractionalValue, seg.BitsAllocated, seg.BitsStored, seg.HighBit = "FRACTIONAL", 200, 8, 8, 7
    seg.PixelData = np.where(pixels > 0, 100, 99).astype(np.uint8).tobytes()
    seg.save_as(tmp_path / "seg.dcm")
    assert (read_segmentation(tmp_path / "seg.dcm", stack)[0] == np.searchsorted([0, 2, 5], make_labels())).all()


def test_label_map_segmentations_are_read(tmp_path):
    seg, stack = written(tmp_path)
    numbers = [g.SegmentIdentificationSequence[0].ReferencedSegmentNumber for g in seg.PerFrameFunctionalGroupsSequence]
    seg.PixelData, seg.SegmentationType = (seg.pixel_array * np.uint8(numbers)[:, None, None]).tobytes(), "LABELMAP"
    seg.SOPClassUID, seg.BitsAllocated, seg.BitsStored, seg.HighBit = "1.2.840.10008.5.1.4.1.1.66.7", 8, 8, 7
    for groups in seg.PerFrameFunctionalGroupsSequence:
        del groups.SegmentIdentificationSequence
    background = deepcopy(seg.SegmentSequence[0])
    background.SegmentNumber, background.SegmentLabel = 0, "Background"
    seg.SegmentSequence.insert(0, background)
    seg.save_as(tmp_path / "seg.dcm")
    labels, names = read_segmentation(tmp_path / "seg.dcm", stack)
    assert (labels == np.searchsorted([0, 2, 5], make_labels())).all() and names == dict(enumerate(NAMES.values(), 1))


def test_the_files_of_a_folder_become_one_label_map(tmp_path):
    stack, labels = make_stack(tmp_path), make_labels()
    (tmp_path / "segs").mkdir()
    for value in NAMES:
        write_segmentation(np.where(labels == value, value, 0), stack, NAMES, tmp_path / "segs" / f"{value}.dcm")
    read, names = read_segmentation(tmp_path / "segs", stack)
    assert names == dict(enumerate(NAMES.values(), 1)) and (read == np.searchsorted([0, 2, 5], labels)).all()


def shift(seg: Dataset, offset_mm) -> None:
    for groups in seg.PerFrameFunctionalGroupsSequence:
        plane = groups.PlanePositionSequence[0]
        plane.ImagePositionPatient = (np.array(plane.ImagePositionPatient, float) + offset_mm).tolist()


def overlap(seg: Dataset) -> None:
    groups = seg.PerFrameFunctionalGroupsSequence
    groups[-1].PlanePositionSequence = groups[0].PlanePositionSequence
    pixels = seg.pixel_array
    pixels[-1] = pixels[0]
    seg.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()


def coarser(seg: Dataset) -> None:
    shared(seg, "PixelMeasuresSequence").PixelSpacing = [1.0, 1.0]


def squeezed(seg: Dataset) -> None:
    """Halve the distances of the slices; what they hold does not overlap."""
    first = np.array(seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient, float)
    pixels = np.zeros_like(seg.pixel_array)
    for n, groups in enumerate(seg.PerFrameFunctionalGroupsSequence):
        plane = groups.PlanePositionSequence[0]
        plane.ImagePositionPatient = ((np.array(plane.ImagePositionPatient, float) + first) / 2).tolist()
        pixels[n].flat[n] = 1
    seg.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()


def turned(seg: Dataset) -> None:
    shared(seg, "PlaneOrientationSequence").ImageOrientationPatient = [*OBLIQUE[0], *OBLIQUE[2]]


def halved(seg: Dataset) -> None:
    seg.PixelData = seg.PixelData[: len(seg.PixelData) // 2]


@pytest.mark.parametrize("change, message", [
    (lambda seg: shift(seg, (30.0, 0, 0)), "another image"), (overlap, "肝臟.*overlap"), (coarser, "resample"), (squeezed, "Several slices"), (turned, "resample"),
    (halved, "could not be read"), (lambda seg: seg.PerFrameFunctionalGroupsSequence[0].pop("PlanePositionSequence"), "no ImagePosition"),
    (lambda seg: setattr(seg, "SOPClassUID", CTImageStorage), "not a DICOM SEG"),
], ids=["elsewhere", "overlapping", "coarser", "squeezed", "turned", "incomplete", "without position", "an image"])  # fmt: skip
def test_segmentations_that_do_not_fit_are_refused(tmp_path, change, message):
    seg, stack = written(tmp_path)
    change(seg)
    seg.save_as(tmp_path / "seg.dcm")
    with pytest.raises(VolumeError, match=message):
        read_segmentation(tmp_path / "seg.dcm", stack)


@pytest.mark.skipif(not dcmqi.PROGRAM, reason="needs itkimage2segimage of dcmqi")
def test_segmentations_of_dcmqi_are_read_with_their_names(tmp_path):
    stack = make_stack(tmp_path, PatientID="7", FrameOfReferenceUID="1.2.3.9", StudyDate="20260101", StudyTime="120000", StudyID="1")
    labels = make_labels()
    lps = np.diag([-1, -1, 1, 1]) @ stack.affine
    image = sitk.GetImageFromArray(labels.transpose(2, 1, 0).astype(np.uint8))
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(SPACING_MM)
    image.SetDirection((lps[:3, :3] / SPACING_MM).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "labels.nrrd"))
    read, names = read_segmentation(dcmqi.write_segmentation(tmp_path, "series"), stack)
    assert names == {1: "liver", 2: "cyst"} and (read == np.searchsorted([0, 2, 5], labels)).all()
