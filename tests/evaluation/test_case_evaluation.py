"""One case: structures, windows, rows."""

from pathlib import Path

import numpy as np
import pytest

from lib.common.errors import OptionError
from lib.engine.options import Options
from lib.evaluation import case_evaluation as cases
from lib.evaluation.case_evaluation import Settings, evaluate_case
from lib.evaluation.methods.app import App
from lib.evaluation.methods.decoder_candidates import Candidates
from lib.evaluation.methods.method import PLAIN, Answer, How, ask, box, clicks, count_clicks, painted, to_voxels
from lib.imaging.datasets import Case, read_cases
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume

CASE = Case("a", Path("a"), Path("b"), {1: "liver", 2: "tumour", 4: "tumour", 7: "spleen"})


@pytest.mark.parametrize("settings, expected", [
    (Settings("he"), {"liver": [1], "tumour": [2, 4], "spleen": [7]}),
    (Settings("dong", labels=("tumour",)), {"tumour": [2, 4]}),
    (Settings("shen"), {"liver+tumour+spleen": [1, 2, 4, 7]}),  # all labels are one structure
    (Settings("shen", labels=("liver", "tumour")), {"liver+tumour": [1, 2, 4]}),
    (Settings("shen", labels=("tumour",)), {"tumour": [2, 4]}),
    (Settings("rounds", labels=("kidney",)), {}),
])  # fmt: skip
def test_structures(settings, expected):
    """Values of one name are one structure."""
    assert cases.structures(CASE, settings) == expected


def volume(ct):
    array = np.zeros((20, 20, 4), np.int16)
    array[:] = np.arange(20)[:, None, None] * 10
    if ct:
        array[:4] = -1000
    return Volume(array)


@pytest.mark.parametrize("settings, ct, bounds", [
    (Settings("he"), True, (-1000, 1000)),
    (Settings("he", window="abdomen"), True, (-160, 240)),
    (Settings("dong"), True, (-160, 240)),
    (Settings("shen", "described"), True, (-160, 240)),
    (Settings("shen", "published"), True, (0, 255)),
    (Settings("shen", "published", window="lung"), True, (-1350, 150)),
])  # fmt: skip
def test_window(settings, ct, bounds):
    target = cases.target_of(volume(ct), np.ones((20, 20, 4), bool), settings)
    assert target.frames.bounds == bounds


def test_he_has_no_window_for_mr():
    bounds = cases.target_of(volume(False), np.ones((20, 20, 4), bool), Settings("he")).frames.bounds
    assert bounds[0] >= 0 and bounds[1] < 1000


@pytest.mark.parametrize("change, words", [
    ({"protocol": "heh"}, "protocol 'heh'"), ({"mode": "both"}, "mode 'both'"), ({"settings": ("nonsense",)}, "no setting 'nonsense'"),
])  # fmt: skip
def test_wrong_settings(change, words):
    with pytest.raises(OptionError, match=words):
        Settings(**{"protocol": "he", **change})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_annotations_as_voxels(axis):
    frames = Frames(Volume(np.zeros((7, 8, 9), np.float32)), axis, (0, 1))
    mask = np.zeros(frames.size, bool)
    mask[2, 3] = True
    found = to_voxels({4: clicks([(True, 2, 3), (False, 5, 1)]), 2: box((1, 2), (3, 5)), 1: painted(mask)}, frames)
    assert found["positive"] == [frames.to_voxel(4, 2, 3)] and found["negative"] == [frames.to_voxel(4, 5, 1)]
    assert found["boxes"] == [[frames.to_voxel(2, 1, 2), frames.to_voxel(2, 3, 5)]]
    (at,) = np.argwhere(found["masks"][1])
    assert np.insert(at, axis, 1).tolist() == list(frames.to_voxel(1, 2, 3))


def test_of_two_clicks_on_a_pixel_the_later_counts():
    made = clicks([(True, 2, 3), (True, 1, 1), (False, 2, 3)])
    assert made.points.tolist() == [[3, 2], [1, 1]] and made.labels.tolist() == [0, 1]
    assert count_clicks({1: made, 2: box((0, 0), (2, 2)), 3: painted(np.ones((2, 2), bool))}) == 4


class Says:
    """A method that finds all or nothing; one that goes with the clicks of others."""

    def __init__(self, name, value, takes_masks=True):
        self.name, self.value, self.takes_masks, self.asked = name, value, takes_masks, []

    def open(self, frames):
        self.frames = frames

    def segment(self, annotations, how=PLAIN):
        self.asked.append((annotations, how))
        return Answer(np.full((len(self.frames), *self.frames.size), self.value))


def test_nothing_is_asked_where_nothing_says_where():
    method = Says("all", True)
    frames = Frames(Volume(np.zeros((4, 5, 3), np.float32)), 2, (0, 1))
    method.open(frames)
    assert not ask(method, frames, {0: painted(np.zeros((5, 4), bool)), 1: clicks([(False, 1, 1)])}).mask.any() and not method.asked
    assert ask(method, frames, {1: clicks([(True, 1, 1)])}).mask.all()


def test_other_methods_get_the_same_clicks(balls):
    """The first finds nothing, the second everything; the third takes no masks."""
    methods = [Says("none", False), Says("all", True), Says("clicks only", True, takes_masks=False)]
    case = read_cases(balls)[0]
    report = evaluate_case(case, Settings("shen", settings=("5 clicks", "1 mask"), labels=("large",)), methods)
    rows = report["rows"]
    assert [r["method"] for r in rows if r["setting"] == "1 mask"] == ["none", "all"]
    clicked = [r for r in rows if r["setting"] == "5 clicks"]
    assert [(r["round"], r["method"]) for r in clicked[:6]] == [(n, m) for n in (1, 2) for m in ("none", "all", "clicks only")]
    for a, b in zip([q for q, how in methods[0].asked if q and how.one_by_one], [q for q, how in methods[2].asked], strict=True):
        assert {t: p.key for t, p in a.items()} == {t: p.key for t, p in b.items()}
    assert {r["dice"] for r in rows if r["method"] == "none"} == {0.0}
    assert all(r["iou"] == pytest.approx(r["dice"] / (2 - r["dice"]), abs=1e-4) for r in rows if r["method"] == "all")


def test_random_choices_depend_on_the_seed(balls):
    """The random clicks of He et al. are the same again, and others with another seed."""
    def asked(seed):
        method = Says("all", True)
        evaluate_case(read_cases(balls)[0], Settings("he", settings=("full",), seed=seed), [method])
        return [{t: p.key for t, p in annotations.items()} for annotations, _ in method.asked]

    assert asked(1) == asked(1) and asked(1) != asked(2)


@pytest.mark.parametrize("protocol, mode, settings, columns", [
    ("he", "published", ("background removed",), {"dice", "nsd"}), ("shen", "published", ("1 mask",), {"hd95"}),
    ("dong", "described", ("median/box/both/best", "three/points/forward/first"), {"slice_iou_sum"}), ("rounds", "described", ("box",), {"iou"}),
])  # fmt: skip
def test_this_engine(balls, protocol, mode, settings, columns):
    """With the embedded network: balls are easy."""
    options = Options()
    propose = Candidates(options) if protocol == "dong" else None
    report = evaluate_case(read_cases(balls)[1], Settings(protocol, mode, settings=settings, labels=("large",)), [App(options)], propose)
    rows = report["rows"]
    assert {r["setting"] for r in rows} == set(settings) and all(columns <= set(r) for r in rows)
    assert max(r["dice"] for r in rows) > 0.6
    assert all(0 <= r["dice"] <= 1 and r["seconds"] > 0 for r in rows) and len(report["overlays"]) == 1


def test_candidates_are_the_decoders_three_masks(balls):
    """Each with its predicted IoU; that of a click on the ball holds the click."""
    from lib.imaging.readers import read_volume

    frames = Frames.of(read_volume(read_cases(balls)[0].image))
    masks, iou = Candidates(Options())(frames, 4, clicks([(True, 20, 16)]))
    assert masks.shape == (3, *frames.size) and iou.shape == (3,) and masks[:, 20, 16].any() and masks.mean() < 0.6


def test_how_is_passed_on(balls):
    from lib.imaging.readers import read_volume

    app = App(Options())
    app.open(Frames.of(read_volume(read_cases(balls)[0].image)))
    prompt = {4: clicks([(True, 20, 16)])}
    assert np.flatnonzero(app.segment(prompt, How(propagate=False)).mask.any((1, 2))).tolist() == [4]
    forward = app.segment(prompt, How(direction="forward")).mask.any((1, 2))
    assert not forward[:4].any() and forward[5]
    assert app.segment(prompt).mask[3].any() and app.segment(prompt).result is not None
