"""Tests of the simulated annotator on hand-made masks."""

import numpy as np
import pytest

from lib.engine.result import Result
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.prompts import simulated_annotator
from lib.quality import annotation_loop


def mask_from(*rows):
    """Return the bool mask (Y, X) in which "#" is foreground."""
    return np.array([[c == "#" for c in row] for row in rows])


EMPTY = mask_from(*["............"] * 5)
LEFT = mask_from("............", "###.........", "###.........", "###.........", "............")
RIGHT = mask_from("............", "........###.", "........###.", "........###.", "............")
BAR = mask_from("............", "............", "..########..", "............", "............")


@pytest.fixture
def frames():
    """Return three slices, each 12 pixels wide and 5 high, along the last axis."""
    return Frames.of(Volume(np.zeros((12, 5, 3), np.float32)), axis=2)


def test_edge_distance_counts_to_the_outside():
    assert simulated_annotator.edge_distance(LEFT)[:, :4].tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 2, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_deepest_pixel():
    assert simulated_annotator.deepest_pixel(EMPTY) is None
    assert simulated_annotator.deepest_pixel(RIGHT) == (2, 9)
    assert simulated_annotator.deepest_pixel(LEFT | RIGHT) == (2, 1), "the first of equals"
    assert simulated_annotator.deepest_pixel(BAR) == (2, 2)


def test_a_corrective_click_goes_to_the_deeper_error():
    large = mask_from(*[".......#####"] * 5)
    assert simulated_annotator.corrective_click(EMPTY, LEFT) == (True, 2, 1)
    assert simulated_annotator.corrective_click(LEFT, EMPTY) == (False, 2, 1)
    assert simulated_annotator.corrective_click(large, LEFT) == (False, 2, 9)
    assert simulated_annotator.corrective_click(LEFT, large) == (True, 2, 9)


def test_of_equally_deep_errors_the_missed_region_is_clicked():
    assert simulated_annotator.corrective_click(LEFT, RIGHT) == (True, 2, 9)
    assert simulated_annotator.corrective_click(RIGHT, LEFT) == (True, 2, 1)


def test_thin_errors_get_no_click():
    assert simulated_annotator.corrective_click(LEFT, LEFT) is None
    assert simulated_annotator.corrective_click(EMPTY, BAR) is None and simulated_annotator.corrective_click(BAR, EMPTY) is None


def test_slices_at_shares_of_the_extent():
    reference = np.zeros((20, 5, 12), bool)
    reference[4:15] = LEFT
    reference[10] = EMPTY  # Ten slices remain; the last of them has index 14.
    assert simulated_annotator.slices_at_shares(reference) == [6, 8, 12]
    assert simulated_annotator.slices_at_shares(reference, (0, 1)) == [4, 14]
    reference[5:] = False
    assert simulated_annotator.slices_at_shares(reference) == [4], "each slice once"


def test_largest_slice_is_the_first_of_equals():
    assert simulated_annotator.largest_slice(np.stack([EMPTY, LEFT, LEFT | RIGHT, BAR, LEFT | RIGHT])) == 2


class FakeModel:
    """A model that returns the given masks one after the other (then the last one for ever) and records its prompts."""

    def __init__(self, *masks):
        self.masks, self.requests = list(masks), []

    def __call__(self, prompts):
        self.requests.append({k: list(v) for k, v in prompts.items()})
        return self.masks[min(len(self.requests), len(self.masks)) - 1]


def test_clicks_stop_when_the_mask_is_right(frames):
    reference = np.stack([EMPTY, LEFT, EMPTY])
    predict = FakeModel(LEFT)
    assert simulated_annotator.clicks_on_slice(predict, frames, reference, 1, 5) == {"positive": [(1, 2, 1)], "negative": []}
    assert predict.requests == [{"positive": [(1, 2, 1)], "negative": []}]


def test_each_click_corrects_the_latest_mask(frames):
    """The model returns half of the structure, then too much, then exactly the structure."""
    reference = np.stack([EMPTY, EMPTY, LEFT | RIGHT])
    middle = mask_from("............", "....###.....", "....###.....", "....###.....", "............")
    predict = FakeModel(LEFT, LEFT | middle | RIGHT, LEFT | RIGHT)
    clicks = simulated_annotator.clicks_on_slice(predict, frames, reference, 2, 9)
    assert clicks == {"positive": [(1, 2, 2), (9, 2, 2)], "negative": [(5, 2, 2)]}
    assert len(predict.requests) == 3


@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_clicks_is_limited(frames, count):
    reference = np.stack([LEFT | RIGHT] * 3)
    predict = FakeModel(LEFT)
    clicks = simulated_annotator.clicks_on_slice(predict, frames, reference, 0, count)
    assert clicks["positive"] == [(1, 2, 0), (9, 2, 0)][:count] and len(predict.requests) == count - 1


@pytest.mark.parametrize("mask", [EMPTY, RIGHT])
def test_no_click_is_repeated(frames, mask):
    """A model that ignores the clicks would otherwise get the same click for ever."""
    reference = np.stack([LEFT] * 3)
    clicks = simulated_annotator.clicks_on_slice(FakeModel(mask), frames, reference, 0, 9)
    assert clicks == {"positive": [(1, 2, 0)], "negative": []}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_box_is_tight(axis):
    frames = Frames.of(Volume(np.zeros((7, 8, 9), np.float32)), axis=axis)
    mask = np.zeros((7, 8, 9), bool)
    mask[2:5, 3:7, 4:6] = True
    low, high = [2, 3, 4], [4, 6, 5]
    low[axis] = high[axis] = 4
    assert simulated_annotator.box_on_slice(frames, frames.from_volume(mask), 4) == {"boxes": [[tuple(low), tuple(high)]]}


def fake_segment(reference, frames, requests):
    """Return a `Segment` that gives the reference on each annotated slice, and on its neighbours too if it propagates.

    It appends the prompts of each call to `requests`.
    """
    def segment(prompts, propagate):
        requests.append(prompts)
        annotated = {v[2] for k in ("positive", "negative") for v in prompts.get(k, ())} | {b[0][2] for b in prompts.get("boxes", ())}
        annotated |= set(prompts.get("absent", ())) | set(prompts.get("masks", ()))
        mask = np.zeros_like(reference)
        for t in annotated:
            low = t - 1 if propagate else t
            high = t + 1 if propagate else t
            mask[max(0, low) : high + 1] = reference[max(0, low) : high + 1]
        return Result(frames.to_volume(mask), 2, tuple(sorted(annotated)))

    return segment


@pytest.mark.parametrize("annotate", [simulated_annotator.click_annotator(3), simulated_annotator.box_annotator, simulated_annotator.painting_annotator])
def test_each_round_annotates_the_chosen_slice(annotate):
    reference = np.zeros((9, 5, 12), bool)
    reference[2:8] = LEFT
    frames = Frames.of(Volume(np.zeros((12, 5, 9), np.float32)), axis=2)
    rounds = list(annotation_loop.annotation_rounds(fake_segment(reference, frames, []), frames, reference, lambda s: s.annotated == {2} and 5 or None, annotate))
    assert [r.slice for r in rounds] == [2, 5]
    assert [r.state.annotated for r in rounds] == [{2}, {2, 5}]
    assert [r.dice for r in rounds] == pytest.approx([4 / 8, 10 / 11]), "first 2 and then 5 of the 6 slices are right"


def test_rounds_mark_slices_without_the_object_as_empty_and_stop_after_the_given_count():
    reference = np.zeros((9, 5, 12), bool)
    reference[2:8] = LEFT
    frames = Frames.of(Volume(np.zeros((12, 5, 9), np.float32)), axis=2)
    rounds = list(annotation_loop.annotation_rounds(fake_segment(reference, frames, []), frames, reference, lambda s: 0 if 0 not in s.annotated else 8, simulated_annotator.click_annotator(3), count=3))
    assert [r.slice for r in rounds] == [2, 0, 8] and rounds[-1].prompts["absent"] == [0, 8]
