"""The simulated annotator on masks drawn by hand."""

import numpy as np
import pytest

from lib.engine.result import Result
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.prompts import simulated_annotator
from lib.quality import annotation_loop


def drawn(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


EMPTY = drawn(*["............"] * 5)
LEFT = drawn("............", "###.........", "###.........", "###.........", "............")
RIGHT = drawn("............", "........###.", "........###.", "........###.", "............")
BAR = drawn("............", "............", "..########..", "............", "............")


@pytest.fixture
def frames():
    """Three slices of 12 x 5 pixels, along the last axis."""
    return Frames.of(Volume(np.zeros((12, 5, 3), np.float32)), axis=2)


def test_depth_counts_to_the_outside():
    assert simulated_annotator.edge_distance(LEFT)[:, :4].tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 2, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_deepest():
    assert simulated_annotator.deepest_pixel(EMPTY) is None
    assert simulated_annotator.deepest_pixel(RIGHT) == (2, 9)
    assert simulated_annotator.deepest_pixel(LEFT | RIGHT) == (2, 1), "the first of equals"
    assert simulated_annotator.deepest_pixel(BAR) == (2, 2)


def test_next_click_corrects_the_deeper_error():
    large = drawn(*[".......#####"] * 5)
    assert simulated_annotator.corrective_click(EMPTY, LEFT) == (True, 2, 1)
    assert simulated_annotator.corrective_click(LEFT, EMPTY) == (False, 2, 1)
    assert simulated_annotator.corrective_click(large, LEFT) == (False, 2, 9)
    assert simulated_annotator.corrective_click(LEFT, large) == (True, 2, 9)


def test_missed_wins_ties():
    assert simulated_annotator.corrective_click(LEFT, RIGHT) == (True, 2, 9)
    assert simulated_annotator.corrective_click(RIGHT, LEFT) == (True, 2, 1)


def test_thin_errors_get_no_click():
    assert simulated_annotator.corrective_click(LEFT, LEFT) is None
    assert simulated_annotator.corrective_click(EMPTY, BAR) is None and simulated_annotator.corrective_click(BAR, EMPTY) is None


def test_slices_at_shares_of_the_extent():
    reference = np.zeros((20, 5, 12), bool)
    reference[4:15] = LEFT
    reference[10] = EMPTY  # 10 slices are left, the last of them is number 14
    assert simulated_annotator.slices_at_shares(reference) == [6, 8, 12]
    assert simulated_annotator.slices_at_shares(reference, (0, 1)) == [4, 14]
    reference[5:] = False
    assert simulated_annotator.slices_at_shares(reference) == [4], "equal ones once"


def test_largest_slice_is_the_first_of_equals():
    assert simulated_annotator.largest_slice(np.stack([EMPTY, LEFT, LEFT | RIGHT, BAR, LEFT | RIGHT])) == 2


class Answers:
    """A network that gives these masks, one after the other, and notes what it was asked."""

    def __init__(self, *masks):
        self.masks, self.asked = list(masks), []

    def __call__(self, prompts):
        self.asked.append({k: list(v) for k, v in prompts.items()})
        return self.masks[min(len(self.asked), len(self.masks)) - 1]


def test_clicks_stop_when_the_answer_is_right(frames):
    reference = np.stack([EMPTY, LEFT, EMPTY])
    predict = Answers(LEFT)
    assert simulated_annotator.clicks_on_slice(predict, frames, reference, 1, 5) == {"positive": [(1, 2, 1)], "negative": []}
    assert predict.asked == [{"positive": [(1, 2, 1)], "negative": []}]


def test_clicks_follow_the_answers(frames):
    """First half of it, then too much of it, then all of it."""
    reference = np.stack([EMPTY, EMPTY, LEFT | RIGHT])
    middle = drawn("............", "....###.....", "....###.....", "....###.....", "............")
    predict = Answers(LEFT, LEFT | middle | RIGHT, LEFT | RIGHT)
    clicks = simulated_annotator.clicks_on_slice(predict, frames, reference, 2, 9)
    assert clicks == {"positive": [(1, 2, 2), (9, 2, 2)], "negative": [(5, 2, 2)]}
    assert len(predict.asked) == 3


@pytest.mark.parametrize("count", [1, 2])
def test_no_more_clicks_than_asked_for(frames, count):
    reference = np.stack([LEFT | RIGHT] * 3)
    predict = Answers(LEFT)
    clicks = simulated_annotator.clicks_on_slice(predict, frames, reference, 0, count)
    assert clicks["positive"] == [(1, 2, 0), (9, 2, 0)][:count] and len(predict.asked) == count - 1


@pytest.mark.parametrize("answer", [EMPTY, RIGHT])
def test_no_click_is_repeated(frames, answer):
    """A network that never learns would get the same click for ever."""
    reference = np.stack([LEFT] * 3)
    clicks = simulated_annotator.clicks_on_slice(Answers(answer), frames, reference, 0, 9)
    assert clicks == {"positive": [(1, 2, 0)], "negative": []}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_box_is_tight_in_voxels(axis):
    frames = Frames.of(Volume(np.zeros((7, 8, 9), np.float32)), axis=axis)
    mask = np.zeros((7, 8, 9), bool)
    mask[2:5, 3:7, 4:6] = True
    low, high = [2, 3, 4], [4, 6, 5]
    low[axis] = high[axis] = 4
    assert simulated_annotator.box_on_slice(frames, frames.from_volume(mask), 4) == {"boxes": [[tuple(low), tuple(high)]]}


def engine(reference, frames, asked):
    """Answers with the reference up to one slice beyond what is annotated, as far as slices are annotated at all."""
    def segment(prompts, propagate):
        asked.append(prompts)
        said = {v[2] for k in ("positive", "negative") for v in prompts.get(k, ())} | {b[0][2] for b in prompts.get("boxes", ())}
        said |= set(prompts.get("absent", ())) | set(prompts.get("masks", ()))
        mask = np.zeros_like(reference)
        for t in said:
            low = t - 1 if propagate else t
            high = t + 1 if propagate else t
            mask[max(0, low) : high + 1] = reference[max(0, low) : high + 1]
        t = len(reference)
        return Result(frames.to_volume(mask), 2, tuple(sorted(said)), *(np.ones(t),) * 3, np.zeros((t, 1)), np.ones(t))

    return segment


@pytest.mark.parametrize("annotate", [simulated_annotator.click_annotator(3), simulated_annotator.box_annotator, simulated_annotator.painting_annotator])
def test_rounds_annotate_what_the_strategy_chooses(annotate):
    reference = np.zeros((9, 5, 12), bool)
    reference[2:8] = LEFT
    frames = Frames.of(Volume(np.zeros((12, 5, 9), np.float32)), axis=2)
    asked = []
    done = list(annotation_loop.annotation_rounds(engine(reference, frames, asked), frames, reference, lambda s: s.annotated == {2} and 5 or None, annotate))
    assert [r.slice for r in done] == [2, 5]
    assert [r.scene.annotated for r in done] == [{2}, {2, 5}]
    assert [r.dice for r in done] == pytest.approx([4 / 8, 10 / 11]), "2 and then 5 of 6 slices are right"


def test_rounds_say_where_the_object_is_not_and_stop_by_count():
    reference = np.zeros((9, 5, 12), bool)
    reference[2:8] = LEFT
    frames = Frames.of(Volume(np.zeros((12, 5, 9), np.float32)), axis=2)
    done = list(annotation_loop.annotation_rounds(engine(reference, frames, []), frames, reference, lambda s: 0 if 0 not in s.annotated else 8, simulated_annotator.click_annotator(3), count=3, first=4))
    assert [r.slice for r in done] == [4, 0, 8] and done[-1].prompts["absent"] == [0, 8]
