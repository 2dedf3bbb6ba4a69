"""Tests of the sample data, which is generated once for all tests of this module."""

import numpy as np
import pytest

from lib.imaging.datasets import read_cases
from lib.imaging.readers import read_mask, read_volume
from lib.samples import phantom, sample_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("samples")
    sample_data.make_samples(path)
    return path


def test_nifti_and_dicom_contain_the_same_image(folder):
    for name in ("icbm152_t1", "ct_phantom"):
        nifti, dicom = read_volume(folder / "nifti" / f"{name}.nii.gz"), read_volume(folder / "dicom" / name)
        assert nifti.shape == dicom.shape
        np.testing.assert_allclose(nifti.affine, dicom.affine, atol=1e-3)
        np.testing.assert_array_equal(nifti.array, dicom.array)


def test_label_maps_contain_the_named_structures(folder):
    for case in read_cases(folder):
        labels = read_mask(case.label, read_volume(case.image))
        assert set(case.labels) <= set(np.unique(labels)), case.name


def test_a_second_call_changes_nothing(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}
    sample_data.make_samples(folder)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}


def test_phantoms_differ_by_seed():
    first, _ = phantom.abdomen(1, shape=(40, 40, 20), spacing_mm=(8, 8, 12))
    second, _ = phantom.abdomen(2, shape=(40, 40, 20), spacing_mm=(8, 8, 12))
    assert (first.array != second.array).any()
