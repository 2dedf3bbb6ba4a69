"""DICOM series that do not say where their slices lie, or contradict themselves, are refused with the reason."""

import numpy as np
import pytest

from lib.common.errors import VolumeError
from lib.imaging.readers import read_volume
from lib.imaging.studies import StudiesFolder
from tests.imaging.real_cases import copies, save_dicom, series, set_pixels


def without(*ks):
    """Return a change of a series: slices k are missing."""
    return lambda images: [ds for k, ds in enumerate(images) if k not in ks]


def each(change, *ks):
    """Return a change of a series: `change(ds)` is made to slices k, or to all."""
    def apply(images):
        for k, ds in enumerate(images):
            if not ks or k in ks:
                change(ds)
        return images

    return apply


def moved(offset, *ks):
    """Return a change of a series: the slices k, or all those from the fifth on in growing steps, are moved by an offset (3,) in mm."""
    def move(ds, times):
        ds.ImagePositionPatient = [f"{float(v) + times * o:.6f}" for v, o in zip(ds.ImagePositionPatient, offset, strict=True)]

    def apply(images):
        for k, ds in enumerate(images):
            move(ds, max(0, k - 4) if not ks else k in ks)
        return images

    return apply


def set_(**fields):
    return lambda ds: [setattr(ds, k, v) for k, v in fields.items()]


def shrink(ds):
    set_pixels(ds, np.zeros((6, 7), np.uint16))
    ds.PixelSpacing = ["4", "3"]


MISSING = "evenly|missing|distance"
REFUSED = {
    "a missing slice": (without(4), MISSING), "missing slices": (without(3, 4, 5), MISSING), "the second is missing": (without(1), MISSING),
    "every other one is missing from the fifth on": (without(5, 7), MISSING),
    "twice the distance from the fifth on": (moved((0, 0, 3)), MISSING),
    "a copy": (lambda images: images + copies(images[3:4], 1), "twice|same position"),
    "two copies": (lambda images: images + copies(images[3:4], 1) + copies(images[3:4], 2), "twice|same position"),
    "all at one position": (each(set_(ImagePositionPatient=["-20", "13", "40"])), "same position"),
    "a slice beside the others": (moved((4, 0, 0), 5), "beside|line"), "slices that drift away": (moved((1, 0, 0)), "beside|line"),
    "another tilt from the fifth on": (moved((0, 0.7, 0)), "beside|line"),
    "a slice too high": (moved((0, 0, 1.2), 5), "beside|evenly|line"),
    "a slice of another size": (each(shrink, 0), "size"), "several of another size": (each(shrink, 6, 7, 8), "size"),
    "another pixel spacing": (each(set_(PixelSpacing=["1", "0.75"]), 6, 7, 8), "pixel|spacing"),
    "one without position": (each(lambda ds: delattr(ds, "ImagePositionPatient"), 5), "ImagePositionPatient"),
    "no positions": (each(lambda ds: delattr(ds, "ImagePositionPatient")), "ImagePositionPatient"),
    "empty positions": (each(set_(ImagePositionPatient=None)), "ImagePositionPatient"),
    "one empty position": (each(set_(ImagePositionPatient=None), 2), "ImagePositionPatient"),
    "positions of two numbers": (each(set_(ImagePositionPatient=["1", "2"])), "ImagePositionPatient"),
    "positions that are no numbers": (each(set_(ImagePositionPatient=["nan", "13", "40"]), 3), "ImagePositionPatient"),
    "no orientation": (each(lambda ds: delattr(ds, "ImageOrientationPatient")), "ImageOrientationPatient"),
    "orientations of zeros": (each(set_(ImageOrientationPatient=["0"] * 6)), "ImageOrientationPatient"),
    "directions with an angle": (each(set_(ImageOrientationPatient=["1", "0", "0", "0.6", "0.8", "0"])), "ImageOrientationPatient"),
    "no pixel spacing": (each(lambda ds: delattr(ds, "PixelSpacing")), "PixelSpacing"),
    "a pixel spacing of 0": (each(set_(PixelSpacing=["0", "1"])), "PixelSpacing"),
    "no pixels": (each(lambda ds: delattr(ds, "PixelData"), 5), "pixels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_series_that_are_refused_with_the_reason(tmp_path, kind):
    change, words = REFUSED[kind]
    folder = save_dicom(change(series()), tmp_path / "head")
    with pytest.raises(VolumeError, match=words) as e:
        read_volume(folder)
    assert str(e.value).endswith(".") and str(tmp_path) not in str(e.value)


def test_a_decimal_comma_is_refused(tmp_path):
    folder = save_dicom(series(), tmp_path / "head")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"-20.000000\\", b"-20,000000\\"))
    with pytest.raises(VolumeError, match="ImagePositionPatient"):
        read_volume(folder)


@pytest.mark.parametrize("name, share", [("004.dcm", 0.2), ("004.dcm", 0.6), ("004.dcm", 0.95), ("008.dcm", 0.6)])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    folder = save_dicom(series(), tmp_path / "head")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(VolumeError):
        read_volume(folder)


@pytest.mark.parametrize("content", [b"", b"half a preamble"])
def test_a_series_does_not_lose_its_last_slice_silently(tmp_path, content):
    """As after an interrupted copy: nobody would notice that a slice at the end is missing."""
    folder = save_dicom(series(), tmp_path / "head")
    (folder / "008.dcm").write_bytes(content)
    with pytest.raises(VolumeError, match="008.dcm could not be read: it is damaged, incomplete"):
        read_volume(folder)
    listing = StudiesFolder(tmp_path).list_images()
    assert not listing.images and "008.dcm could not be read: it is damaged, incomplete" in listing.refused["head"]
