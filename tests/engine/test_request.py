import tempfile
from pathlib import Path

import numpy as np
import pytest

from lib.common.errors import OptionError, PromptError, VolumeError
from lib.engine.options import Options
from lib.engine.request import has_no_prompt, parse_bool, parse_options, parse_prompts
from lib.engine.result import Result
from lib.imaging.frames import resolve_axis, window_bounds
from lib.imaging.volume import Volume
from lib.imaging.writers import write_mask

VOLUME = Volume(np.zeros((10, 12, 8), np.int16))
CLICK = [[5, 5, 5]]


def prompts(request, *, propagate=True, painted=None):
    return parse_prompts(request, VOLUME, parse_options(request, propagate=propagate), painted=painted)


# --- options ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("request_", [{}, {"window": None, "axis": "", "z_range": "", "components": []}, {"unknown": 1}])
def test_defaults(request_):
    assert parse_options(request_) == Options()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("window", ["lung", "bone"], "lung"),  # a drop-down that nobody touched
        ("window", "bone", "bone"),
        ("axis", ["auto", "0"], "auto"),
        ("axis", 1, "1"),
        ("direction", ("forward", "both"), "forward"),
        ("device", "cpu", "cpu"),
        ("checkpoint", ["embedded"], "embedded"),
        ("components", "all", "all"),
        ("obey", "no", False),
        ("refine", ["true"], True),
        ("refine", False, False),
    ],
)
def test_option(name, value, expected):
    assert getattr(parse_options({name: value}), name) == expected


@pytest.mark.parametrize(
    ("value", "largest"), [(True, True), ("true", True), ([1], True), (False, False), ("0", False), ([], False)]
)
def test_largest_cc(value, largest):
    assert parse_options({"largest_cc": value}).components == ("largest" if largest else "annotated")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2,5", (2, 5)),
        ("2:5", (2, 5)),
        (" 5 , 2 ", (2, 5)),
        ([2, 5], (2, 5)),
        (("5", 2.0), (2, 5)),
        ([3, 3], (3, 3)),
        ([], None),
    ],
)
def test_z_range(value, expected):
    assert parse_options({"z_range": value}).z_range == expected


@pytest.mark.parametrize(
    "value", ["5", "a,b", "1,2,3", [4], [1, 2, 3], 5, {"low": 1, "high": 2}, "nan,2", "0,inf", [None, 2]]
)
def test_z_range_refused(value):
    with pytest.raises(OptionError, match="z_range must be two"):
        parse_options({"z_range": value})


@pytest.mark.parametrize("name", ["direction", "components", "axis", "window"])
def test_unknown_option_value(name):
    with pytest.raises(OptionError, match="(?i)unknown.*'sideways'"):
        options = parse_options({name: "sideways"})
        resolve_axis(VOLUME, options.axis)
        window_bounds(VOLUME, options.window)


@pytest.mark.parametrize(
    ("value", "expected"), [(1, True), ("On", True), (" yes ", True), (0, False), (None, False), ("off", False)]
)
def test_parse_bool(value, expected):
    assert parse_bool(value) is expected


# --- clicks and lists ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("clicks", [[[1, 2, 3], [4, 5, 6]], "[[1, 2, 3], [4, 5, 6]]", ((1, 2, 3), (4.2, 5, 6))])
def test_foreground(clicks):
    got = prompts({"foreground": clicks, "background": [[7, 8, 7]], "absent": "[0, 1.0]"})
    assert got.positive == ((1, 2, 3), (4, 5, 6))
    assert (got.negative, got.absent) == (((7, 8, 7),), (0, 1))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"foreground": "here"}, "'foreground' is not a list"),
        ({"background": 7}, "'background' is not a list"),
        ({"boxes": {"a": 1}}, "'boxes' is not a list"),
        ({"absent": ["x"]}, "'absent' must hold whole numbers"),
        ({"absent": [float("inf")]}, "'absent' must hold whole numbers"),
        ({"foreground": [[5, 5]]}, "three numbers"),  # and no field "slice"
        ({"foreground": [[5, 5]], "slice": "top"}, "'slice' must hold whole numbers"),
        ({"foreground": [], "background": ""}, "Nothing says where"),
    ],
)
def test_refused(more, message):
    with pytest.raises(PromptError, match=message):
        prompts({"foreground": CLICK} | more)


def test_a_request_without_any_prompt_is_recognized(tmp_path):
    assert has_no_prompt({"foreground": [], "background": "[]", "boxes": None, "roi": [0] * 6, "label": "spleen"})
    for name in ("foreground", "background", "boxes", "absent", "mask_slices"):
        assert not has_no_prompt({name: [1]})
    assert not has_no_prompt({"roi": [0, 1, 0, 1, 0, 1]}) and not has_no_prompt({"label": str(tmp_path / "painted.nrrd")})
    result = Result.empty((4, 5, 6), 1)
    assert not result.mask.any() and result.areas.tolist() == [0] * 5 and np.isnan(result.estimates.expected_iou).all()


@pytest.mark.parametrize(("axis", "voxel"), [(0, (6, 3, 4)), (1, (3, 6, 4)), (2, (3, 4, 6))])
def test_click_in_2d_with_the_slice_shown(axis, voxel):
    request = {"foreground": [[3, 4]], "background": [[3, 5], [1, 1, 1]], "slice": "6", "axis": axis}
    got = prompts(request)
    assert got.positive == (voxel,)
    assert got.negative[1] == (1, 1, 1)


# --- region of interest ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("flip", range(8))
@pytest.mark.parametrize("as_text", [False, True])
def test_roi_in_every_flip(flip, as_text):
    pairs = [[2, 6], [3, 7], [1, 4]]
    numbers = [v for n, pair in enumerate(pairs) for v in (pair[::-1] if flip >> n & 1 else pair)]
    assert prompts({"roi": str(numbers) if as_text else numbers}).roi == ((2, 3, 1), (6, 7, 4))


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        ([-5, 6, 3, 99, 1, 4], ((0, 3, 1), (6, 11, 4))),
        ([6, -5, 99, 3, 4, 1], ((0, 3, 1), (6, 11, 4))),
        ([-1e30, 1e30, -1e30, 1e30, -1e30, 1e30], ((0, 0, 0), (9, 11, 7))),
        ([0, 0, 0, 0, 0, 0], None),  # a region nobody drew
        ([], None),
        (None, None),
    ],
)
def test_roi(roi, expected):
    assert prompts({"foreground": CLICK, "roi": roi}).roi == expected


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ([-9, -2, 3, 7, 1, 4], "outside"),
        ([2, 6, 3, 7, 8, 9], "outside"),
        ([2, 6, 3, 7], "six numbers"),
        ([2, 6, 3, 7, 1, float("nan")], "six numbers"),
        ([2, 6, 3, 7, 1, "x"], "six numbers"),
        ([[2, 6], [3, 7], [1, 4]], "six numbers"),
    ],
)
def test_roi_refused(roi, message):
    with pytest.raises(PromptError, match=message):
        prompts({"foreground": CLICK, "roi": roi})


@pytest.mark.parametrize(
    ("roi", "displayed", "k"),
    [
        ([2, 6, 3, 7, 2, 6], 5, 5),
        ([2, 6, 3, 7, 2, 6], None, 4),
        ([2, 6, 3, 7, 2, 6], 0, 4),  # the slice displayed is not in the region
        ([2, 6, 3, 7, 4, 999], None, 6),  # the middle of what lies in the volume, (4 + 7) / 2
        ([2, 6, 3, 7, -999, 4], None, 2),
    ],
)
def test_one_slice_takes_the_region_as_a_box(roi, displayed, k):
    got = prompts({"roi": roi, "slice": displayed}, propagate=False)
    assert (got.boxes, got.roi) == ((((2, 3, k), (6, 7, k)),), None)


# --- uploaded masks --------------------------------------------------------------------------------------------------
def upload(path):
    mask = np.zeros(VOLUME.shape, np.uint8)
    mask[4, 5, 2], mask[4:6, 5, 6] = 1, 3
    return str(write_mask(mask, VOLUME, path))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder of its own, as the server's."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(("axis", "slices"), [(2, {2: 1, 6: 2}), (0, {4: 2, 5: 1})])
def test_uploaded_label_map(temporary, axis, slices):
    got = prompts({"label": upload(temporary / "up.nii.gz"), "axis": axis})
    assert {t: int(m.sum()) for t, m in got.masks.items()} == slices


def test_label_elsewhere_is_a_name(temporary, tmp_path, monkeypatch):
    outside = upload(tmp_path / "elsewhere.nii.gz")
    monkeypatch.chdir(temporary)  # a server started there must not take names for files
    for label in ("liver", "../elsewhere.nii.gz", outside, 3, None, {"liver": 1}):
        assert prompts({"foreground": CLICK, "label": label}).masks == {}
    assert set(prompts({"label": "liver"}, painted=outside).masks) == {2, 6}


def test_uploaded_label_map_refused(temporary):
    (temporary / "bad.nii.gz").write_text("no image")
    with pytest.raises(VolumeError, match="could not be read"):
        prompts({"label": str(temporary / "bad.nii.gz")})
    with pytest.raises(VolumeError, match="no image at gone.nrrd"):
        prompts({"label": str(Path(temporary) / "gone.nrrd")})
    small = write_mask(np.ones((2, 3, 4)), Volume(np.zeros((2, 3, 4))), temporary / "small.nrrd")
    with pytest.raises(VolumeError, match=r"small.nrrd has shape \(2, 3, 4\), but the image has \(10, 12, 8\)"):
        prompts({"label": str(small)})
