"""Tests of the generated CT phantom."""

import nibabel as nib
import numpy as np
import pytest

from lib.imaging.frames import Frames
from lib.imaging.geometry import to_mm
from lib.samples import phantom

SMALL = {"shape": (64, 64, 32), "spacing_mm": (5.5, 5.5, 7.5)}


@pytest.fixture(scope="module")
def patient():
    return phantom.abdomen(0, **SMALL)


def centre_mm(patient, name):
    """Return the centre (3,) of a structure in mm RAS."""
    volume, labels = patient
    return to_mm(volume.affine, np.argwhere(labels == phantom.LABELS[name]).mean(0))


def test_grid(patient):
    volume, labels = patient
    assert volume.shape == labels.shape == (64, 64, 32)
    assert (volume.array.dtype, labels.dtype) == (np.int16, np.uint8)
    assert volume.spacing_mm.tolist() == [5.5, 5.5, 7.5]
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    np.testing.assert_allclose(to_mm(volume.affine, (31.5, 31.5, 15.5)), 0, atol=1e-9)


def test_every_structure_is_there(patient):
    assert set(np.unique(patient[1])) == {0, *phantom.LABELS.values()}


def test_anatomy_lies_on_the_right_side(patient):
    """In mm RAS, x grows to the patient's right, y to the front and z to the head."""
    liver, spleen, left, right, spine = (
        centre_mm(patient, n) for n in ("liver", "spleen", "kidney_left", "kidney_right", "vertebra")
    )
    assert liver[0] > 0 > spleen[0]
    assert right[0] > 0 > left[0]
    assert spine[1] < min(liver[1], left[1])
    assert liver[2] > right[2]


def test_values_are_hounsfield_units(patient):
    volume, labels = patient
    assert volume.array[0, 0].max() < -900  # air around the body
    assert 60 < np.median(volume.array[labels == phantom.LABELS["liver"]]) < 150
    frames = Frames.of(volume)
    assert (frames.axis, frames.bounds) == (2, (-160.0, 240.0))


def test_equal_seeds_give_equal_patients_and_other_seeds_give_others(patient):
    same, other = phantom.abdomen(0, **SMALL), phantom.abdomen(1, **SMALL)
    assert same[0].key == patient[0].key
    np.testing.assert_array_equal(same[1], patient[1])
    assert (other[1] != patient[1]).any()
    assert other[0].name == "ct_phantom_1"
