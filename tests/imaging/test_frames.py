"""Tests of intensity windows, slicing axes and frames."""

import numpy as np
import pytest

from lib.common.errors import OptionError
from lib.imaging.frames import Frames, fitted_size, resolve_axis, window_bounds
from lib.imaging.volume import Volume


def filled(*shares, dtype=np.int16):
    """Return a volume (20, 20, 20); each (share, low, high) fills a share of its voxels with a ramp from low to high."""
    ramps = [np.linspace(low, high, round(8000 * share)) for share, low, high in shares]
    return Volume(np.concatenate(ramps).astype(dtype).reshape(20, 20, 20))


CT = filled((0.4, -1000, -950), (0.6, -100, 150))
MR = filled((0.5, 0, 0), (0.5, 100, 900))
WINDOWED = filled((0.5, 0, 0), (0.5, 0, 255), dtype=np.uint8)
DARK_BYTES = filled((0.5, 0, 0), (0.5, 50, 150), dtype=np.uint8)


@pytest.mark.parametrize(
    ("volume", "window", "bounds"),
    [
        (CT, "auto", (-160, 240)),
        (CT, "", (-160, 240)),
        (CT, "lung", (-1350, 150)),
        (CT, " Bone ", (-450, 1050)),
        (MR, "brain", (0, 80)),
        (MR, "-10,90.5", (-10, 90.5)),
        (MR, "0, 1", (0, 1)),
        (MR, "auto", (104, 896)),  # percentiles 0.5 and 99.5 of the upper half, not of the background
        (WINDOWED, "auto", (0, 255)),
        (DARK_BYTES, "auto", (50.5, 149.5)),  # a byte image that fills only a part of the range
        (filled((1, 7, 7)), "auto", (7, 8)),
        (filled((1, 0, 0)), "auto", (0, 1)),
        (filled((1, -1000, -1000)), "auto", (-1000, -999)),  # A volume of air alone is not recognized as CT.
    ],
)
def test_window_bounds(volume, window, bounds):
    # A percentile of a sampled ramp of 800 values is accurate to a few values.
    np.testing.assert_allclose(window_bounds(volume, window), bounds, atol=0 if window != "auto" else 5)
    assert np.diff(window_bounds(volume, window)) > 0


@pytest.mark.parametrize("window", ["liver", "1", "1,2,3", "a,b", "5,5", "9,1", "nan,1", "0,inf", "None"])
def test_unknown_windows_are_refused(window):
    with pytest.raises(OptionError, match="window"):
        window_bounds(MR, window)


def test_few_bright_voxels_do_not_set_the_window():
    array = MR.array.copy()
    array.reshape(-1)[:3] = 30000
    assert window_bounds(Volume(array))[1] < 1000


def test_windowed_frames_are_scaled_and_clipped():
    volume = Volume(np.array([-10, 0, 25, 50, 100, 200], np.int16).reshape(1, 1, 6))
    frames = Frames.of(volume, window="0,100", axis=2)
    windowed = frames.windowed([0, 1, 2, 3, 4, 5])
    assert windowed.dtype == np.uint8
    assert windowed.ravel().tolist() == [0, 0, 64, 128, 255, 255]
    assert frames.windowed([3]).tolist() == [[[128]]]


@pytest.mark.parametrize(("axis", "expected"), [("auto", 1), ("", 1), ("0", 0), (1, 1), (" 2 ", 2)])
def test_resolve_axis(axis, expected):
    assert resolve_axis(Volume(np.zeros((4, 5, 6)), np.diag([1.0, 3, 1, 1])), axis) == expected


@pytest.mark.parametrize("axis", ["3", -1, "z", "None", 1.5])
def test_unknown_axes_are_refused(axis):
    with pytest.raises(OptionError, match="axis"):
        resolve_axis(MR, axis)


@pytest.mark.parametrize("shape", [(4, 5, 1), (1, 5, 1)])
def test_a_planar_image_is_one_frame(shape):
    frames = Frames.of(Volume(np.zeros(shape), np.diag([3.0, 1, 1, 1]), planar=True))
    assert (frames.axis, len(frames), frames.size) == (2, 1, (5, shape[0]))


# For a volume (4, 5, 6) with voxels of 2 x 3 x 7 mm: axis, number of frames, size (Y, X), pixel size (Y, X) in mm, distance of
# slices in mm, and the position (t, y, x) of voxel (1, 2, 3).
SLICED = [
    (0, 4, (6, 5), (7, 3), 2, (1, 3, 2)),
    (1, 5, (6, 4), (7, 2), 3, (2, 3, 1)),
    (2, 6, (5, 4), (3, 2), 7, (3, 2, 1)),
]


@pytest.mark.parametrize(("axis", "total", "size", "pixel_mm", "slice_mm", "pixel"), SLICED)
def test_frames_along_each_axis(axis, total, size, pixel_mm, slice_mm, pixel):
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    frames = Frames.of(Volume(array, np.diag([2.0, 3, 7, 1])), axis=axis)
    assert (len(frames), frames.size, frames.pixel_mm, frames.slice_mm) == (total, size, pixel_mm, slice_mm)
    assert frames.to_pixel((1, 2, 3)) == pixel
    assert frames.to_voxel(*pixel) == (1, 2, 3)
    assert frames.stack[pixel] == array[1, 2, 3]
    assert frames.from_volume(array)[pixel] == array[1, 2, 3]
    np.testing.assert_array_equal(frames.to_volume(frames.stack), array)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_voxel_survives_the_conversion_to_pixels_and_back(axis):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    frames = Frames.of(Volume(array), axis=axis)
    pixels = set()
    for ijk in np.ndindex(2, 3, 4):
        t, y, x = frames.to_pixel(ijk)
        assert frames.to_voxel(t, y, x) == ijk
        assert frames.stack[t, int(y), int(x)] == array[ijk]
        pixels.add((t, y, x))
    assert len(pixels) == 24


def test_the_key_depends_on_axis_and_bounds_only():
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    keys = {Frames.of(volume, axis=a, window=w).key for a in (0, 2) for w in ("brain", "0,80", "lung")}
    assert len(keys) == 4  # "brain" has the bounds 0,80


@pytest.mark.parametrize(
    ("size", "pixel_mm", "expected"),
    [
        ((512, 512), (0.7, 0.7), (256, 256)),
        ((100, 200), (1.0, 1.0), (128, 256)),
        ((200, 100), (1.0, 1.0), (256, 128)),
        ((30, 300), (5.0, 0.5), (256, 256)),  # a reformatted slice: equal extents in mm
        ((30, 256), (5.0, 1.0), (150, 256)),
        ((1, 5000), (1.0, 1.0), (1, 256)),  # at least one pixel
    ],
)
def test_fitted_size(size, pixel_mm, expected):
    assert fitted_size(size, pixel_mm, 256) == expected


def test_thumbnails_are_small_frames_of_true_aspect():
    array = np.zeros((40, 20, 3), np.int16)  # x, y, slices of 1 x 1 mm
    array[20:, :, 1] = 100
    thumbnails = Frames.of(Volume(array, np.eye(4)), axis=2, window="0,100").thumbnails(16)
    assert thumbnails.shape == (3, 16, 16) and thumbnails.dtype == np.uint8
    assert not thumbnails[0].any() and not thumbnails[1, 8:].any()  # The slice is half as high as wide.
    assert (thumbnails[1, :8, 8:] == 255).all() and not thumbnails[1, :, :8].any()
