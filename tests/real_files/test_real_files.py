"""The script run.py on a few small cases that are made here, and its judgements of answers that are wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from highdicom.seg import segread

from lib.imaging.dicom.segmentations import write_segmentation
from lib.imaging.dicom.stacks import find_stacks
from lib.imaging.volume import Volume
from lib.imaging.writers import write_mask
from tests.imaging.real_cases import LPS, lps_affine, save_dicom, series, tilted_affine, write_nifti
from tests.real_files.cases import BALL, Case, Verdict, complaint, judge_mask, read_cases, refusal, worst
from tests.real_files.ways import _slice_positions, judge_segmentation, verdict_of
from tests.serving import orthanc

RUN = Path(__file__).with_name("run.py")
SHAPE, CENTRE_IJK, RADIUS_MM = (48, 40, 14), (27, 17, 6), 11.0
SPACING_MM = (1.5, 2.0, 3.0)


def ball(affine: np.ndarray) -> np.ndarray:
    """Return the mask of the ball, bool (I, J, K), on a grid of this affine (mm LPS)."""
    offsets = np.argwhere(np.ones(SHAPE, bool)) - CENTRE_IJK
    return (np.linalg.norm(offsets @ affine[:3, :3].T, axis=1) <= RADIUS_MM).reshape(SHAPE)


def image(affine: np.ndarray) -> np.ndarray:
    """Return an image, int16 (I, J, K), of the ball."""
    return (np.random.default_rng(0).normal(100, 10, SHAPE) + 700 * ball(affine)).astype(np.int16)


def note(folder: Path, name: str, path: Path, affine: np.ndarray, **more) -> None:
    """Add a case to truth.json."""
    file = folder / "truth.json"
    cases = json.loads(file.read_text()) if file.exists() else {}
    centre = affine[:3, :3] @ CENTRE_IJK + affine[:3, 3]
    cases[name] = {"image": str(path), "click": CENTRE_IJK, "centre": centre.tolist(), "r": RADIUS_MM, "a": affine.tolist(), **more}
    file.write_text(json.dumps(cases))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Return a folder with a NIfTI file with a label, a tilted DICOM series, and one that lacks a slice."""
    folder = tmp_path_factory.mktemp("cases")
    straight, tilted = lps_affine(), tilted_affine()
    label = write_nifti(folder / "label.nii.gz", ball(straight).astype(np.uint8), straight)
    note(folder, "with_label", write_nifti(folder / "ct.nii.gz", image(straight), straight), straight, mask=str(label))
    images = series(tilted, image(tilted))
    note(folder, "dcm_tilt", save_dicom(images, folder / "dcm_tilt"), tilted)
    for ds in (missing := series(straight, image(straight))):
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(ds, name, getattr(ds, name) + ".5")
    note(folder, "dcm_missing", save_dicom(missing[:5] + missing[6:], folder / "dcm_missing"), straight)
    return folder


@pytest.mark.server
def test_all_ways_give_the_wanted_answers(cases, tmp_path):
    ways = ["cli", "folder"] + ["orthanc"] * orthanc.IS_INSTALLED
    command = [sys.executable, str(RUN), "--cases", str(cases), "--ways", ",".join(ways), "--json", str(tmp_path / "verdicts.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = json.loads((tmp_path / "verdicts.json").read_text())
    kinds = {name: [v["kind"] for v in row.values()] for name, row in verdicts.items()}
    store = ["right"] * orthanc.IS_INSTALLED, ["refused"] * orthanc.IS_INSTALLED, ["not asked"] * orthanc.IS_INSTALLED
    assert kinds == {
        "with_label": ["right", "right", *store[2]], "dcm_tilt": ["right", "right", *store[0]],
        "dcm_missing": ["refused", "refused", *store[1]],
    }  # fmt: skip
    assert "0 not as wanted" in done.stdout


def test_unknown_names_are_refused(cases):
    with pytest.raises(SystemExit, match="nobody"):
        read_cases(cases, ["nobody"])


# --- judgements ------------------------------------------------------------------------------------------------------
@pytest.fixture
def case(cases) -> Case:
    return read_cases(cases, ["dcm_tilt"])[0]


@pytest.mark.parametrize("shift, kind", [((0, 0, 0), "right"), ((1, 0, 0), "right"), ((4, 0, 0), "wrong"), ((0, 0, 2), "wrong")])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".seg.nrrd"])
def test_masks_elsewhere_are_wrong(case, tmp_path, shift, kind, ending):
    mask = np.roll(ball(case.affine), shift, (0, 1, 2))
    volume = Volume(mask.astype(np.int16), LPS @ case.affine)
    verdict = judge_mask(case, write_mask(mask, volume, tmp_path / f"mask{ending}"))
    assert verdict.kind == kind and "mm off" in verdict.text


def test_masks_of_another_size_empty_masks_and_files_that_are_none_are_wrong(case, tmp_path):
    grid = Volume(np.zeros(SHAPE, np.int16), LPS @ case.affine)
    wrong = (ball(case.affine / 0.8), "of the ball"), (ball(1.3 * case.affine), "of the ball"), (np.zeros(SHAPE, bool), "empty")
    for mask, words in wrong:
        verdict = judge_mask(case, write_mask(mask, grid, tmp_path / "mask.nrrd"))
        assert verdict.kind == "wrong" and words in verdict.text
    (tmp_path / "text.nrrd").write_text("no mask")
    assert judge_mask(case, tmp_path / "text.nrrd").kind == "wrong"
    image = sitk.ReadImage(str(tmp_path / "mask.nrrd"))
    image.SetOrigin((0, 0, 0))
    sitk.WriteImage(image, str(tmp_path / "moved.nrrd"))
    assert judge_mask(case, tmp_path / "moved.nrrd").kind == "wrong"


def test_segmentations_beside_the_slices_or_elsewhere_are_wrong(case, tmp_path):
    (stack,) = find_stacks(case.image)
    write_segmentation(ball(case.affine).astype(np.uint8), stack, {1: BALL}, tmp_path / "seg.dcm")
    segmentation = segread(tmp_path / "seg.dcm")
    assert judge_segmentation(case, segmentation, _slice_positions(case)).kind == "right"
    place = segmentation.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    place.ImagePositionPatient[2] += 0.1
    assert "beside the source slices" in judge_segmentation(case, segmentation, _slice_positions(case)).text
    moved = np.roll(ball(case.affine), 3, 2).astype(np.uint8)
    write_segmentation(moved, stack, {1: BALL}, tmp_path / "moved.dcm")
    assert judge_segmentation(case, segread(tmp_path / "moved.dcm"), _slice_positions(case)).kind == "wrong"
    write_segmentation(ball(case.affine).astype(np.uint8), stack, {1: "liver"}, tmp_path / "other.dcm")
    assert "another name" in judge_segmentation(case, segread(tmp_path / "other.dcm"), _slice_positions(case)).text


@pytest.mark.parametrize("error, kind", [
    ('Status: 400; Response: {"detail":"The slices are not evenly spaced."}', "refused"), ("Status: 404; Response: Not Found", "wrong"),
    ('Status: 400; Response: {"detail":"The request was not understood: a field has a wrong type."}', "wrong"),
    ('Status: 500; Response: {"detail":"The server could not read or write a file; see its log."}', "crash"), ("timed out", "crash"),
    ('Status: 400; Response: {"detail":"Traceback (most recent call last): ..."}', "crash"),
])  # fmt: skip
def test_error_messages(error, kind):
    assert verdict_of(RuntimeError(error)).kind == kind


def test_only_wanted_answers_give_no_complaint(cases):
    right, refused = Verdict("right", "0.1 mm off"), refusal("A slice is missing: add it.")
    must_be_right, must_be_refused = (read_cases(cases, [name])[0] for name in ("dcm_tilt", "dcm_missing"))
    assert not complaint(must_be_right, right) and not complaint(must_be_refused, refused)
    assert "must be right" in complaint(must_be_right, refused) and "must be refused" in complaint(must_be_refused, right)
    assert "reason that matches" in complaint(must_be_refused, refusal("The file is not a nice one."))
    assert complaint(read_cases(cases, ["with_label"])[0], refused) == "", "cases without a wish may be refused"
    assert worst([right, Verdict("wrong"), refused]).kind == "wrong" and worst([right, refused]).kind == "refused"
