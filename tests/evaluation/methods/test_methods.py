"""Test the official predictor and MONAI Label's built-in task as methods under evaluation, with the embedded network."""

import numpy as np
import pytest

from benchmarks.peers import BuiltinMethod, OfficialMethod
from lib.common.errors import PromptError
from lib.engine.options import Options
from lib.evaluation.methods.method import PropagationMode, box_prompt, click_prompt, mask_prompt
from lib.imaging.datasets import read_cases
from lib.imaging.frames import Frames
from lib.imaging.metrics import dice
from lib.imaging.readers import read_mask, read_volume

INSIDE = {4: click_prompt([(True, 20, 16), (False, 2, 2)])}


@pytest.fixture(scope="module")
def ball(balls):
    """Return the frames and the reference of the large ball."""
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


def segmented_slices(prediction):
    """Return the indices of the slices on which the predicted mask is not empty."""
    return np.flatnonzero(prediction.mask.any((1, 2))).tolist()


@pytest.mark.parametrize("prompt, min_dice", [(INSIDE[4], 0.6), (box_prompt((11, 7), (29, 25)), 0.8), ("reference", 0.9)])
def test_official_finds_the_ball(official, ball, prompt, min_dice):
    frames, reference = ball
    prompt = mask_prompt(reference[4]) if prompt == "reference" else prompt
    prediction = official.segment({4: prompt})
    assert prediction.result is None and dice(prediction.mask[4], reference[4]) > min_dice and dice(prediction.mask, reference) > 0.5
    assert segmented_slices(official.segment({4: prompt}, PropagationMode(propagate=False))) == [4]


def test_official_predictions_depend_on_the_prompts_alone(official):
    first = official.segment(INSIDE).mask
    official.segment({2: click_prompt([(True, 24, 36)])})
    official.segment(INSIDE, PropagationMode(corrections_condition=False))
    np.testing.assert_array_equal(official.segment(INSIDE).mask, first)


def test_official_forward_begins_at_the_first_slice(official):
    """Slices before the annotated one are tracked from slice 0 on, and not backward from the annotated one."""
    both, forward = (official.segment(INSIDE, PropagationMode(direction=d)).mask for d in ("both", "forward"))
    assert forward[:4].any() and (forward[:4] != both[:4]).any()


def test_corrections_continue_from_what_was_propagated(ball):
    """The mask is the same whether the slices are given one by one or all at once."""
    annotations = INSIDE | {6: click_prompt([(True, 20, 16)])} | {1: click_prompt([(False, 20, 16)])}
    mode = PropagationMode(corrections_condition=False)
    whole, stepwise = (OfficialMethod(Options(device="cpu")) for _ in range(2))
    for method in (whole, stepwise):
        method.open(ball[0])
    for n in (1, 2, 3):
        last = stepwise.segment(dict(list(annotations.items())[:n]), mode).mask
    np.testing.assert_array_equal(whole.segment(annotations, mode).mask, last)
    assert (last != whole.segment(annotations).mask).any(), "conditioning makes a difference"


def test_clicks_one_by_one(official):
    """Each click is decoded with the logits of those before it, so that the mask differs from that of all clicks at once."""
    annotations = {4: click_prompt([(True, 20, 16), (True, 14, 16), (False, 24, 36)])}
    modes = (PropagationMode(propagate=False, clicks_one_by_one=one_by_one) for one_by_one in (False, True))
    at_once, one_by_one = (official.segment(annotations, mode).mask[4] for mode in modes)
    assert (at_once != one_by_one).any() and dice(at_once, one_by_one) > 0.5


@pytest.mark.parametrize("prompt", [INSIDE[4], box_prompt((11, 7), (29, 25))])
def test_builtin_goes_forward_from_the_annotated_slice(builtin, ball, prompt):
    frames, reference = ball
    mask = builtin.segment({4: prompt}).mask
    assert mask.shape == reference.shape and dice(mask[4], reference[4]) > 0.5 and not mask[:4].any()
    assert segmented_slices(builtin.segment({4: prompt}, PropagationMode(propagate=False))) == [4]


def test_builtin_takes_no_painted_slices(builtin, ball):
    with pytest.raises(PromptError, match="painted"):
        builtin.segment({4: mask_prompt(ball[1][4])})
    with pytest.raises(PromptError, match="one box"):
        builtin.segment({3: box_prompt((1, 1), (9, 9)), 4: box_prompt((1, 1), (9, 9))})
    empty = mask_prompt(np.zeros_like(ball[1][0]))
    np.testing.assert_array_equal(builtin.segment(INSIDE | {7: empty}).mask, builtin.segment(INSIDE).mask, "it cannot be told")


def test_builtin_spreads_a_box_over_its_slices(builtin, ball):
    """With a 3D box, the task gets the box on all its slices, and so finds the structure before the middle slice as well."""
    annotations, mode = {4: box_prompt((11, 7), (29, 25))}, PropagationMode(box_slices=(2, 6), propagate=True)
    mask = builtin.segment(annotations, mode).mask
    assert not mask[:2].any() and all(dice(mask[t], ball[1][t]) > 0.5 for t in (3, 4, 5))


def test_builtin_steps_along_any_axis(balls):
    """The task gets the volume with the slicing axis last."""
    volume = read_volume(read_cases(balls)[0].image)
    frames = Frames.of(volume, axis=0)
    method = BuiltinMethod(Options(device="cpu"))
    method.open(frames)
    t, y, x = (int(v) for v in frames.to_pixel((16, 20, 4)))
    mask = method.segment({t: click_prompt([(True, y, x)])}, PropagationMode(propagate=False)).mask
    assert mask.shape == (48, *frames.size) and mask[t, y, x]


def test_both_in_one_process(official, builtin, ball):
    """The official predictor reads its frames from memory and the built-in task from files, whichever was loaded first."""
    before = builtin.segment(INSIDE).mask
    again = OfficialMethod(Options(device="cpu"))
    again.open(ball[0])
    again.segment(INSIDE)
    np.testing.assert_array_equal(builtin.segment(INSIDE).mask, before)
