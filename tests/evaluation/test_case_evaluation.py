"""Test the evaluation of one case: structures, intensity windows, prompts, rows."""

from pathlib import Path

import numpy as np
import pytest

from lib.common.errors import OptionError
from lib.engine.options import Options
from lib.evaluation import case_evaluation
from lib.evaluation.case_evaluation import EvaluationSettings, evaluate_case
from lib.evaluation.methods.app import AppMethod
from lib.evaluation.methods.decoder_candidates import DecoderCandidates
from lib.evaluation.methods.method import (
    DEFAULT_MODE,
    Prediction,
    PropagationMode,
    box_prompt,
    click_prompt,
    count_clicks,
    mask_prompt,
    segment_or_empty,
    to_voxel_prompts,
)
from lib.imaging.datasets import Case, read_cases
from lib.imaging.frames import Frames
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume

CASE = Case("a", Path("a"), Path("b"), {1: "liver", 2: "tumour", 4: "tumour", 7: "spleen"})


@pytest.mark.parametrize("settings, expected", [
    (EvaluationSettings("he"), {"liver": [1], "tumour": [2, 4], "spleen": [7]}),
    (EvaluationSettings("dong", labels=("tumour",)), {"tumour": [2, 4]}),
    (EvaluationSettings("shen"), {"liver+tumour+spleen": [1, 2, 4, 7]}),  # all labels are one structure
    (EvaluationSettings("shen", labels=("liver", "tumour")), {"liver+tumour": [1, 2, 4]}),
    (EvaluationSettings("shen", labels=("tumour",)), {"tumour": [2, 4]}),
    (EvaluationSettings("rounds", labels=("kidney",)), {}),
])  # fmt: skip
def test_choose_structures(settings, expected):
    """Values with the same name are one structure."""
    assert case_evaluation.choose_structures(CASE, settings) == expected


def make_volume(is_ct):
    """Return a volume with a gradient along i, with air at one end if it is to look like CT."""
    array = np.zeros((20, 20, 4), np.int16)
    array[:] = np.arange(20)[:, None, None] * 10
    if is_ct:
        array[:4] = -1000
    return Volume(array)


@pytest.mark.parametrize("settings, is_ct, bounds", [
    (EvaluationSettings("he"), True, (-1000, 1000)),
    (EvaluationSettings("he", window="abdomen"), True, (-160, 240)),
    (EvaluationSettings("dong"), True, (-160, 240)),
    (EvaluationSettings("shen", "described"), True, (-160, 240)),
    (EvaluationSettings("shen", "published"), True, (0, 255)),
    (EvaluationSettings("shen", "published", window="lung"), True, (-1350, 150)),
])  # fmt: skip
def test_window(settings, is_ct, bounds):
    target = case_evaluation.make_target(make_volume(is_ct), np.ones((20, 20, 4), bool), settings)
    assert target.frames.bounds == bounds


def test_he_has_no_window_for_mr():
    bounds = case_evaluation.make_target(make_volume(False), np.ones((20, 20, 4), bool), EvaluationSettings("he")).frames.bounds
    assert bounds[0] >= 0 and bounds[1] < 1000


@pytest.mark.parametrize("change, words", [
    ({"protocol": "heh"}, "protocol 'heh'"), ({"mode": "both"}, "mode 'both'"), ({"settings": ("nonsense",)}, "no setting 'nonsense'"),
])  # fmt: skip
def test_wrong_settings(change, words):
    with pytest.raises(OptionError, match=words):
        EvaluationSettings(**{"protocol": "he", **change})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_annotations_become_voxel_prompts(axis):
    frames = Frames(Volume(np.zeros((7, 8, 9), np.float32)), axis, (0, 1))
    mask = np.zeros(frames.size, bool)
    mask[2, 3] = True
    annotations = {4: click_prompt([(True, 2, 3), (False, 5, 1)]), 2: box_prompt((1, 2), (3, 5)), 1: mask_prompt(mask)}
    arguments = to_voxel_prompts(annotations, frames)
    assert arguments["positive"] == [frames.to_voxel(4, 2, 3)] and arguments["negative"] == [frames.to_voxel(4, 5, 1)]
    assert arguments["boxes"] == [[frames.to_voxel(2, 1, 2), frames.to_voxel(2, 3, 5)]]
    (voxel,) = np.argwhere(arguments["masks"][1])
    assert np.insert(voxel, axis, 1).tolist() == list(frames.to_voxel(1, 2, 3))


def test_of_two_clicks_on_a_pixel_the_later_counts():
    prompt = click_prompt([(True, 2, 3), (True, 1, 1), (False, 2, 3)])
    assert prompt.points.tolist() == [[3, 2], [1, 1]] and prompt.labels.tolist() == [0, 1]
    assert count_clicks({1: prompt, 2: box_prompt((0, 0), (2, 2)), 3: mask_prompt(np.ones((2, 2), bool))}) == 4


class ConstantMethod:
    """A method that predicts the same value for all voxels, and that keeps the annotations and modes that it gets."""

    def __init__(self, name, value, takes_masks=True):
        self.name, self.value, self.takes_masks, self.takes_clicks, self.requests = name, value, takes_masks, True, []

    def open(self, frames):
        self.frames = frames

    def segment(self, annotations, mode=DEFAULT_MODE):
        self.requests.append((annotations, mode))
        return Prediction(np.full((len(self.frames), *self.frames.size), self.value))


def test_methods_are_not_called_without_a_prompt_that_locates_the_structure():
    method = ConstantMethod("all", True)
    frames = Frames(Volume(np.zeros((4, 5, 3), np.float32)), 2, (0, 1))
    method.open(frames)
    unlocated = {0: mask_prompt(np.zeros((5, 4), bool)), 1: click_prompt([(False, 1, 1)])}
    assert not segment_or_empty(method, frames, unlocated).mask.any() and not method.requests
    assert segment_or_empty(method, frames, {1: click_prompt([(True, 1, 1)])}).mask.all()


def test_other_methods_get_the_same_clicks(balls):
    """The first method predicts nothing and the second everything; the third takes no masks."""
    methods = [ConstantMethod("none", False), ConstantMethod("all", True), ConstantMethod("clicks only", True, takes_masks=False)]
    case = read_cases(balls)[0]
    report = evaluate_case(case, EvaluationSettings("shen", settings=("5 clicks", "1 mask"), labels=("large",)), methods)
    rows = report["rows"]
    assert [r["method"] for r in rows if r["setting"] == "1 mask"] == ["none", "all"]
    clicked = [r for r in rows if r["setting"] == "5 clicks"]
    assert [(r["round"], r["method"]) for r in clicked[:6]] == [(n, m) for n in (1, 2) for m in ("none", "all", "clicks only")]
    first_requests = [annotations for annotations, mode in methods[0].requests if annotations and mode.clicks_one_by_one]
    for first, third in zip(first_requests, [annotations for annotations, _ in methods[2].requests], strict=True):
        assert {t: p.key for t, p in first.items()} == {t: p.key for t, p in third.items()}
    assert {r["dice"] for r in rows if r["method"] == "none"} == {0.0}
    assert all(r["iou"] == pytest.approx(r["dice"] / (2 - r["dice"]), abs=1e-4) for r in rows if r["method"] == "all")


def test_random_choices_depend_on_the_seed(balls):
    """The random clicks of He et al. are repeated with the same seed, and change with the seed."""
    def request_keys(seed):
        method = ConstantMethod("all", True)
        evaluate_case(read_cases(balls)[0], EvaluationSettings("he", settings=("full",), seed=seed), [method])
        return [{t: p.key for t, p in annotations.items()} for annotations, _ in method.requests]

    assert request_keys(1) == request_keys(1) and request_keys(1) != request_keys(2)


@pytest.mark.parametrize("protocol, mode, settings, columns", [
    ("he", "published", ("background removed",), {"dice", "nsd"}), ("shen", "published", ("1 mask",), {"hd95"}),
    ("dong", "described", ("median/box/both/best", "three/points/forward/first"), {"slice_iou_sum"}),
    ("rounds", "described", ("box",), {"iou"}), ("cvpr25", "described", ("box and 5 clicks",), {"nsd"}),
    ("isvalidate", "described", ("random clicks",), {"nsd"}),
])  # fmt: skip
def test_protocols_with_this_engine(balls, protocol, mode, settings, columns):
    """The embedded network segments balls well."""
    options = Options()
    propose_masks = DecoderCandidates(options) if protocol == "dong" else None
    evaluation_settings = EvaluationSettings(protocol, mode, settings=settings, labels=("large",), edits=4)
    report = evaluate_case(read_cases(balls)[1], evaluation_settings, [AppMethod(options)], propose_masks)
    rows = report["rows"]
    assert {r["setting"] for r in rows} == set(settings) and all(columns <= set(r) for r in rows)
    assert max(r["dice"] for r in rows) > 0.6
    assert all(0 <= r["dice"] <= 1 for r in rows) and len(report["overlays"]) == 1
    assert all(r["seconds"] > 0 for r in rows if protocol != "cvpr25" or not r["round"]), "without a further click nothing is computed"


def test_candidates_are_the_decoders_three_masks(balls):
    """There are three masks with their predicted IoU; one of them at least contains the click."""
    frames = Frames.of(read_volume(read_cases(balls)[0].image))
    masks, iou = DecoderCandidates(Options())(frames, 4, click_prompt([(True, 20, 16)]))
    assert masks.shape == (3, *frames.size) and iou.shape == (3,) and masks[:, 20, 16].any() and masks.mean() < 0.6


def test_the_propagation_mode_reaches_the_engine(balls):
    app = AppMethod(Options())
    app.open(Frames.of(read_volume(read_cases(balls)[0].image)))
    prompt = {4: click_prompt([(True, 20, 16)])}
    assert np.flatnonzero(app.segment(prompt, PropagationMode(propagate=False)).mask.any((1, 2))).tolist() == [4]
    forward = app.segment(prompt, PropagationMode(direction="forward")).mask.any((1, 2))
    assert not forward[:4].any() and forward[5]
    assert app.segment(prompt).mask[3].any() and app.segment(prompt).result is not None


class HalfRightMethod(ConstantMethod):
    """Predicts the reference of the ball whose prompts it gets, but only its lower or only its upper half; keeps all prompts."""

    def __init__(self, name, references, is_lower):
        super().__init__(name, False)
        self.references, self.is_lower = references, is_lower

    def segment(self, annotations, mode=DEFAULT_MODE):
        self.requests.append((annotations, mode))
        t, (x, y) = next((t, xy) for t, p in annotations.items() for xy, label in zip(p.points, p.labels, strict=True) if label)
        centre = min(self.references, key=lambda r: abs(np.argwhere(r).mean(0) - (t, y, x)).sum())
        mask = centre.copy()
        mask[slice(4, None) if self.is_lower else slice(4)] = False
        return Prediction(mask)


@pytest.mark.parametrize("protocol", ["cvpr25", "isvalidate"])
def test_each_method_is_clicked_by_its_own_errors(balls, protocol):
    """The first prompts are the same for both methods; later clicks lie in the half that the method misses."""
    case = read_cases(balls)[0]
    volume = read_volume(case.image)
    labels = Frames.of(volume).from_volume(read_mask(case.label, volume))
    references = [labels == 1, labels == 2]
    lower, upper = (HalfRightMethod(name, references, name == "lower") for name in ("lower", "upper"))
    painter = ConstantMethod("painter", False)
    painter.takes_clicks = False
    report = evaluate_case(case, EvaluationSettings(protocol, edits=5), [lower, upper, painter])
    assert {(r["method"], r["label"]) for r in report["rows"]} == {(m, x) for m in ("lower", "upper") for x in ("large", "small")}
    assert {r["round"] for r in report["rows"]} == set(range(6)) and len(report["overlays"]) == 2
    assert {t: p.key for t, p in lower.requests[0][0].items()} == {t: p.key for t, p in upper.requests[0][0].items()}
    for method, is_missed in ((lower, lambda t: t >= 4), (upper, lambda t: t < 4)):
        annotations = method.requests[-1][0]
        clicks = [t for t, p in annotations.items() for label in p.labels if label == 1]
        assert clicks and all(is_missed(t) for t in clicks[protocol == "isvalidate" :]), method.name


def test_tolerance_reaches_the_surface_dice(balls):
    def nsd(tolerance_mm):
        settings = EvaluationSettings("cvpr25", labels=("large",), tolerance_mm=tolerance_mm)
        return evaluate_case(read_cases(balls)[0], settings, [ConstantMethod("all", True)])["rows"][0]["nsd"]

    assert nsd(0.5) < nsd(20.0) <= 1


@pytest.mark.parametrize("change, words", [({"tolerance_mm": 0.0}, "tolerance"), ({"edits": 0}, "one edit")])
def test_wrong_numbers(change, words):
    with pytest.raises(OptionError, match=words):
        EvaluationSettings("isvalidate", **change)
