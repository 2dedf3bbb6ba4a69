"""Tests of volumes and of making them from arrays."""

import numpy as np
import pytest

from lib.common.errors import VolumeError
from lib.imaging.volume import Volume, make_volume


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ((4, 5, 6), (4, 5, 6)),
        ((4, 5), (4, 5, 1)),
        ((4, 5, 1), (4, 5, 1)),
        ((4, 5, 6, 1), (4, 5, 6)),
        ((4, 5, 6, 1, 1), (4, 5, 6)),
    ],
)
def test_arrays_of_several_shapes_become_volumes(given, shape):
    volume = make_volume(np.ones(given, np.int16))
    assert volume.shape == shape
    assert volume.planar is (len(given) == 2)
    assert volume.array.dtype == np.int16


def test_a_channel_is_selected():
    array = np.zeros((2, 3, 4, 2), np.uint8)
    array[..., 1] = 7
    assert make_volume(array, channel=1).array.tolist() == np.full((2, 3, 4), 7).tolist()


@pytest.mark.parametrize(
    ("array", "channel", "message"),
    [
        (np.zeros((2, 3, 4, 5)), None, "5 channels or time points: choose one of 0 to 4"),
        (np.zeros((2, 3, 4, 5)), 5, "choose one of 0 to 4"),
        (np.zeros((2, 3, 4, 5)), -1, "choose one of 0 to 4"),
        (np.zeros((2, 3, 4, 5, 6)), 0, "5 axes"),
        (np.zeros((0, 3, 4)), None, "no voxels"),
        (np.zeros(7), None, "no voxels"),
        (np.full((2, 3, 4), np.nan), None, "no finite value"),
        (np.array([["a", "b"]]), None, "numbers are needed"),
    ],
)
def test_arrays_that_are_no_volume_are_refused(array, channel, message):
    with pytest.raises(VolumeError, match=message):
        make_volume(array, channel=channel, name="scan")


def test_values_that_are_not_finite_become_the_lowest_finite_value():
    array = np.array([[[1.0, np.nan, np.inf, -np.inf, -3.0]]])
    assert make_volume(array).array.tolist() == [[[1.0, -3.0, -3.0, -3.0, -3.0]]]


@pytest.mark.parametrize(
    ("array", "dtype", "value"),
    [
        (np.full((2, 2, 2), 3 + 4j), np.float32, 5),
        (np.ones((2, 2, 2), bool), np.uint8, 1),
        (np.full((2, 2, 2), 0.5, np.float64), np.float32, 0.5),
    ],
)
def test_values_are_converted_to_real_numbers(array, dtype, value):
    voxels = make_volume(array).array
    assert voxels.dtype == dtype
    assert (voxels == value).all()


def test_rgb_dtype_becomes_luminance():
    rgb = np.zeros((2, 3, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    rgb["R"], rgb["G"], rgb["B"] = 100, 50, 10
    volume = make_volume(rgb)
    assert volume.shape == (2, 3, 4)
    np.testing.assert_allclose(volume.array, 0.299 * 100 + 0.587 * 50 + 0.114 * 10, rtol=1e-6)


@pytest.mark.parametrize("affine", [np.diag([1.0, 0, 1, 1]), np.full((4, 4), np.nan), np.eye(3)])
def test_an_unusable_affine_is_refused(affine):
    with pytest.raises(VolumeError, match="unusable affine"):
        make_volume(np.ones((2, 3, 4)), affine)


def test_a_volume_needs_three_axes():
    with pytest.raises(VolumeError, match="three axes"):
        Volume(np.ones((2, 3)))


def test_the_key_depends_on_voxels_and_affine_only():
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    key = Volume(array).key
    assert Volume(np.asfortranarray(array), name="elsewhere").key == key
    changed = array.copy()
    changed[1, 2, 3] += 1
    others = [
        Volume(changed),
        Volume(array.astype(np.int32)),
        Volume(array.reshape(4, 3, 2)),
        Volume(array, np.diag([2.0, 1, 1, 1])),
    ]
    assert len({key, *(v.key for v in others)}) == 5


def test_spacing():
    assert Volume(np.ones((2, 3, 4)), np.diag([-2.0, 0.5, 3, 1])).spacing_mm.tolist() == [2, 0.5, 3]
