"""Sample data: made from the installation, the same as NIfTI and as DICOM."""

import json

import numpy as np
import pytest

from lib import phantom, samples, simulate
from lib.datasets import read_cases
from lib.errors import UserError
from lib.io.read import read_mask, read_volume


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("samples")
    samples.make_samples(out)
    return out


def test_nifti_and_dicom_hold_the_same_image(folder):
    for name in ("icbm152_t1", "ct_phantom"):
        nifti, dicom = read_volume(folder / "nifti" / f"{name}.nii.gz"), read_volume(folder / "dicom" / name)
        assert nifti.shape == dicom.shape
        np.testing.assert_allclose(nifti.affine, dicom.affine, atol=1e-3)
        np.testing.assert_array_equal(nifti.array, dicom.array)


def test_references_hold_the_named_labels(folder):
    for case in read_cases(folder):
        labels = read_mask(case.label, read_volume(case.image))
        assert set(case.labels) <= set(np.unique(labels)), case.name


def test_a_second_call_changes_nothing(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}
    samples.make_samples(folder)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}


def test_a_folder_without_dataset_json_is_refused(tmp_path):
    with pytest.raises(UserError, match="dataset.json"):
        read_cases(tmp_path)


def test_labels_of_a_case_go_before_the_common_ones(tmp_path):
    rows = [{"image": "a.nii.gz", "label": "b.nii.gz"}, {"image": "c.nii.gz", "label": "d.nii.gz", "labels": {"2": "liver"}}]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "lesion"}, "training": rows}))
    assert [c.labels for c in read_cases(tmp_path)] == [{1: "lesion"}, {2: "liver"}]


def test_simulated_clicks_by_hand():
    truth, empty = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    truth[1:8, 1:6] = True
    assert simulate.deepest(truth) == (3, 3) and simulate.deepest(empty) is None
    assert simulate.next_click(truth, truth) is None
    assert simulate.next_click(empty, truth) == (True, 3, 3)
    assert simulate.next_click(truth, empty) == (False, 3, 3)
    thin = truth.copy()
    thin[1:8, 6] = True  # one column too much: thinner than 1.42 pixels
    assert simulate.next_click(thin, truth) is None


def test_slices_at_shares_of_the_extent():
    stack = np.zeros((20, 4, 4), bool)
    stack[5:16, 1, 1] = True
    stack[9, 2, 2] = True
    assert simulate.slices_at(stack) == [7, 10, 13] and simulate.largest_slice(stack) == 9


def test_phantoms_differ_by_seed():
    a, _ = phantom.abdomen(1, shape=(40, 40, 20), spacing_mm=(8, 8, 12))
    b, _ = phantom.abdomen(2, shape=(40, 40, 20), spacing_mm=(8, 8, 12))
    assert (a.array != b.array).any()
