"""The official predictor and MONAI Label's built-in task behind the interface of `evaluate`, with the embedded network."""

import numpy as np
import pytest

from benchmarks.peers import BuiltinMethod, OfficialMethod
from lib.common.errors import PromptError
from lib.engine.options import Options
from lib.evaluation.methods.method import How, box, clicks, painted
from lib.imaging.datasets import read_cases
from lib.imaging.frames import Frames
from lib.imaging.metrics import dice
from lib.imaging.readers import read_mask, read_volume

INSIDE = {4: clicks([(True, 20, 16), (False, 2, 2)])}


@pytest.fixture(scope="module")
def ball(balls):
    """Frames and reference of the large ball."""
    case = read_cases(balls)[0]
    volume = read_volume(case.image)
    frames = Frames.of(volume)
    return frames, frames.from_volume(read_mask(case.label, volume) == 1)


@pytest.fixture(scope="module")
def official(ball):
    method = OfficialMethod(Options(device="cpu"))
    method.open(ball[0])
    return method


@pytest.fixture(scope="module")
def builtin(ball):
    method = BuiltinMethod(Options(device="cpu"))
    method.open(ball[0])
    return method


def filled(answer):
    return np.flatnonzero(answer.mask.any((1, 2))).tolist()


@pytest.mark.parametrize("prompt, good", [(INSIDE[4], 0.6), (box((11, 7), (29, 25)), 0.8), ("reference", 0.9)])
def test_official_finds_the_ball(official, ball, prompt, good):
    frames, reference = ball
    prompt = painted(reference[4]) if prompt == "reference" else prompt
    answer = official.segment({4: prompt})
    assert answer.result is None and dice(answer.mask[4], reference[4]) > good and dice(answer.mask, reference) > 0.5
    assert filled(official.segment({4: prompt}, How(propagate=False))) == [4]


def test_official_answers_depend_on_the_prompts_alone(official):
    first = official.segment(INSIDE).mask
    official.segment({2: clicks([(True, 24, 36)])})
    official.segment(INSIDE, How(conditioning=False))
    np.testing.assert_array_equal(official.segment(INSIDE).mask, first)


def test_official_forward_begins_at_the_first_slice(official):
    """Slices before the annotated one are tracked too, from slice 0 on, and not backward from the annotated one."""
    both, forward = (official.segment(INSIDE, How(direction=d)).mask for d in ("both", "forward"))
    assert forward[:4].any() and (forward[:4] != both[:4]).any()


def test_corrections_go_on_from_what_was_propagated(ball):
    """Slice by slice, or all at once: the same."""
    said = INSIDE | {6: clicks([(True, 20, 16)])} | {1: clicks([(False, 20, 16)])}
    how = How(conditioning=False)
    whole, stepwise = (OfficialMethod(Options(device="cpu")) for _ in range(2))
    for method in (whole, stepwise):
        method.open(ball[0])
    for n in (1, 2, 3):
        last = stepwise.segment(dict(list(said.items())[:n]), how).mask
    np.testing.assert_array_equal(whole.segment(said, how).mask, last)
    assert (last != whole.segment(said).mask).any(), "conditioning makes a difference"


def test_clicks_one_by_one(official):
    """Each is decoded on the logits of those before, so the answer is another than that of all at once."""
    said = {4: clicks([(True, 20, 16), (True, 14, 16), (False, 24, 36)])}
    at_once, one_by_one = (official.segment(said, How(propagate=False, one_by_one=o)).mask[4] for o in (False, True))
    assert (at_once != one_by_one).any() and dice(at_once, one_by_one) > 0.5


@pytest.mark.parametrize("prompt", [INSIDE[4], box((11, 7), (29, 25))])
def test_builtin_goes_forward_from_the_annotated_slice(builtin, ball, prompt):
    frames, reference = ball
    mask = builtin.segment({4: prompt}).mask
    assert mask.shape == reference.shape and dice(mask[4], reference[4]) > 0.5 and not mask[:4].any()
    assert filled(builtin.segment({4: prompt}, How(propagate=False))) == [4]


def test_builtin_takes_no_painted_slices(builtin, ball):
    with pytest.raises(PromptError, match="painted"):
        builtin.segment({4: painted(ball[1][4])})
    with pytest.raises(PromptError, match="one box"):
        builtin.segment({3: box((1, 1), (9, 9)), 4: box((1, 1), (9, 9))})
    empty = painted(np.zeros_like(ball[1][0]))
    np.testing.assert_array_equal(builtin.segment(INSIDE | {7: empty}).mask, builtin.segment(INSIDE).mask, "it cannot be told")


def test_builtin_steps_along_any_axis(balls):
    """The volume is handed over with the slicing axis last."""
    volume = read_volume(read_cases(balls)[0].image)
    frames = Frames.of(volume, axis=0)
    method = BuiltinMethod(Options(device="cpu"))
    method.open(frames)
    t, y, x = (int(v) for v in frames.to_pixel((16, 20, 4)))
    mask = method.segment({t: clicks([(True, y, x)])}, How(propagate=False)).mask
    assert mask.shape == (48, *frames.size) and mask[t, y, x]


def test_both_in_one_process(official, builtin, ball):
    """The official predictor reads its frames from memory, the other its own from files, whichever was there first."""
    before = builtin.segment(INSIDE).mask
    again = OfficialMethod(Options(device="cpu"))
    again.open(ball[0])
    again.segment(INSIDE)
    np.testing.assert_array_equal(builtin.segment(INSIDE).mask, before)
