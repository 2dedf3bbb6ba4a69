"""Clicks are obeyed and change the mask near them only, whatever the network answers; on drawn shapes and in general."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.imaging.metrics import dice
from lib.prompts.simulated_annotator import corrective_click
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.graph_cut import graph_cut, intensity_logits, scale_intensities
from lib.propagation.obedience import REACH, SMOOTHNESS, click_seeds, obey_clicks, obeys
from tests.propagation.drawn_shapes import CLEAR, SHAPES, WEAK, box_round, clicks_at, draw_shape, draw_slice

NOTHING = np.full((96, 96), -5.0, np.float32)


def disc(y, x, radius):
    rows, columns = np.ogrid[:96, :96]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def logits_of(mask):
    return np.where(mask, 5.0, -5.0).astype(np.float32)


def simulate_clicks(image, shape, answer, count):
    """Return the Dice after each of up to `count` corrective clicks, with a network that always gives the same answer."""
    logits, clicks, dices = None, [], []
    for _ in range(count):
        click = corrective_click(logits > 0 if clicks else np.zeros_like(shape), shape)
        if click is None:
            break
        clicks.append((click[1], click[2], click[0]))
        logits = obey_clicks(image, clicks_at(*clicks), answer, logits)
        assert obeys(click_seeds(clicks_at(*clicks), shape.shape), logits > 0)
        dices.append(dice(logits > 0, shape))
    return dices


LEAST_DICE = {  # After ten clicks on a clear and on a weak shape. A dot has 37 pixels.
    "ring": (0.95, 0.85), "two_parts": (0.93, 0.9), "thin_wall": (0.9, 0.75), "dot": (0.75, 0.6), "crescent": (0.95, 0.85),
}  # fmt: skip


@pytest.mark.parametrize("difference", [CLEAR, WEAK])
@pytest.mark.parametrize("name", SHAPES)
def test_clicks_find_every_shape_even_if_the_network_never_does(name, difference):
    shape = draw_shape(name)
    dices = simulate_clicks(draw_slice(shape, difference), shape, logits_of(disc(48, 48, 20)), 10)
    assert dices[-1] > LEAST_DICE[name][difference == WEAK]
    assert dices[-1] >= max(dices) - 0.1, "no click undoes what those before it have found"


def test_a_collapsed_answer_is_not_taken():
    shape = draw_shape("crescent")
    displayed, collapsed = logits_of(shape), logits_of(disc(60, 70, 4))
    result = obey_clicks(draw_slice(shape, WEAK), clicks_at((48, 30, True), (40, 45, False)), collapsed, displayed)
    assert dice(result > 0, shape) > 0.85


def test_a_good_answer_near_the_click_is_taken():
    shape, displayed = disc(48, 48, 20), disc(48, 38, 12)
    result = obey_clicks(draw_slice(shape, CLEAR), clicks_at((48, 38, True), (48, 58, True)), logits_of(shape), logits_of(displayed))
    assert dice(result > 0, shape) > 0.8 > dice(displayed, shape) + 0.2


@pytest.mark.parametrize("radius", [16, 20, 24])
def test_the_answer_to_a_first_click_is_adapted_to_the_image(radius):
    shape = disc(48, 48, 20)
    mask = obey_clicks(draw_slice(shape, CLEAR), clicks_at((48, 48, True)), logits_of(disc(48, 48, radius))) > 0
    assert dice(mask, shape) > 0.95


def test_the_answer_to_a_first_click_stays_where_the_image_shows_nothing():
    answer = disc(48, 48, 20)
    mask = obey_clicks(np.zeros((96, 96), np.float32), clicks_at((48, 48, True)), logits_of(answer)) > 0
    assert dice(mask, answer) > 0.96


def test_only_what_is_connected_with_the_click_is_taken_of_the_answer_to_a_first_click():
    near, far = disc(30, 30, 10), disc(70, 70, 10)
    mask = obey_clicks(draw_slice(near | far, CLEAR), clicks_at((30, 30, True)), logits_of(near | far)) > 0
    assert dice(mask, near) > 0.95


def test_a_click_where_the_network_finds_nothing_finds_what_looks_like_it():
    shape = disc(40, 50, 9)
    assert dice(obey_clicks(draw_slice(shape, CLEAR), clicks_at((40, 50, True)), NOTHING) > 0, shape) > 0.7


@pytest.mark.parametrize("is_tracked", [False, True])
def test_a_part_that_is_cut_off_goes_unless_it_was_tracked(is_tracked):
    organ, leak, neck = disc(48, 30, 14), disc(48, 70, 14), disc(48, 50, 7)
    displayed = logits_of(organ | leak | neck)
    clicks = clicks_at((48, 30, True), (48, 50, False))
    mask = obey_clicks(draw_slice(organ | leak, CLEAR), clicks, displayed, displayed, is_tracked) > 0
    assert dice(mask, organ | leak if is_tracked else organ) > 0.9


def test_a_part_with_a_click_of_its_own_stays():
    organ, second, neck = disc(48, 30, 14), disc(48, 70, 14), disc(48, 50, 7)
    displayed = logits_of(organ | second | neck)
    clicks = clicks_at((48, 30, True), (48, 70, True), (48, 50, False))
    assert dice(obey_clicks(draw_slice(organ | second, CLEAR), clicks, displayed, displayed) > 0, organ | second) > 0.9


BAR = np.zeros((96, 96), bool)
BAR[38:59, 4:92] = True  # What was displayed after the click (48, 30).
LESION = disc(48, 30, 6)


def test_a_click_outside_in_the_middle_of_the_answer_to_a_first_click_replaces_it():
    clicks = clicks_at((48, 30, True), (48, 75, False))
    assert dice(obey_clicks(draw_slice(LESION, WEAK), clicks, logits_of(LESION), logits_of(BAR)) > 0, LESION) > 0.85


@pytest.mark.parametrize(
    ("clicks", "answer"),
    [
        ([(48, 30, True), (48, 20, True), (48, 75, False)], LESION | disc(48, 20, 6)),  # Two clicks vouch for the mask.
        ([(48, 30, True), (42, 75, False)], LESION),  # The click is near the border.
        ([(48, 30, True), (48, 75, False)], BAR),  # The network has not understood the click.
    ],
)
def test_otherwise_what_is_far_from_a_click_outside_stays(clicks, answer):
    mask = obey_clicks(draw_slice(BAR, WEAK), clicks_at(*clicks), logits_of(answer), logits_of(BAR)) > 0
    assert mask[40:57, 6:50].all()


@pytest.mark.parametrize("click", [(0, 0), (95, 40), (95, 95)])
def test_clicks_at_the_edge_of_the_image(click):
    mask = obey_clicks(draw_slice(disc(48, 48, 20), CLEAR), clicks_at((*click, True)), NOTHING) > 0
    y, x = click
    assert mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].all()


def test_of_two_clicks_side_by_side_each_keeps_its_own_pixel():
    seeds = click_seeds(clicks_at((10, 10, True), (10, 11, False)), (20, 20))
    assert seeds[10, 10] == 1 and seeds[10, 11] == -1 and seeds[9, 9] == 1 and seeds[9, 12] == -1


PLACES = st.tuples(st.integers(0, 47), st.integers(0, 39), st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(PLACES, min_size=1, max_size=6, unique_by=lambda c: c[:2]), st.integers(0, 10**6),
    st.sampled_from(["none", "all", "noise", "disc"]), st.booleans(), st.sampled_from([0.0, 1.0, 500.0]),
)  # fmt: skip
def test_every_click_is_obeyed_and_nothing_far_from_the_last_one_changes_its_side(clicks, seed, answer, is_flat, scale):
    random = np.random.default_rng(seed)
    image = np.zeros((48, 40), np.float32) if is_flat else (scale * random.normal(size=(48, 40))).astype(np.float32)
    rows, columns = np.ogrid[:48, :40]
    disc = np.where((rows - 20) ** 2 + (columns - 25) ** 2 < 100, 6.0, -6.0)
    logits = {"none": np.full(disc.shape, -1024.0), "all": np.full(disc.shape, 9.0), "noise": random.normal(size=disc.shape), "disc": disc}
    prompt = clicks_at(*clicks)
    result = obey_clicks(image, prompt, logits[answer].astype(np.float32), disc.astype(np.float32) if len(clicks) > 1 else None)
    assert result.dtype == np.float32 and np.isfinite(result).all() and result.shape == image.shape
    assert obeys(click_seeds(prompt, image.shape), result > 0)
    again = obey_clicks(image.copy(), prompt, logits[answer].astype(np.float32), disc.astype(np.float32) if len(clicks) > 1 else None)
    np.testing.assert_array_equal(result, again)


@pytest.mark.parametrize("inside", [True, False])
def test_nothing_beyond_twice_the_reach_changes(inside):
    shape = disc(30, 30, 12) | disc(70, 70, 12)
    click = (30, 45, True) if inside else (30, 38, False)  # 3 and 5 pixels from the border
    clicks = clicks_at((70, 70, True), (30, 26, True), click)
    result = obey_clicks(draw_slice(shape, CLEAR), clicks, logits_of(~shape), logits_of(shape))
    rows, columns = np.ogrid[:96, :96]
    is_far = np.hypot(rows - click[0], columns - click[1]) > 2 * REACH * 5 + 4
    np.testing.assert_array_equal((result > 0)[is_far], shape[is_far])


# --- the cut ---------------------------------------------------------------------------------------------------------
def test_a_cut_follows_the_edge_of_the_image():
    shape = disc(48, 48, 20)
    image = scale_intensities(draw_slice(shape, CLEAR))
    evidence = np.where(disc(48, 48, 17), 1.0, np.where(disc(48, 48, 23), 0.0, -1.0))
    assert dice(graph_cut(image, evidence, np.zeros(shape.shape, np.int8), SMOOTHNESS), shape) > 0.95


def test_a_cut_without_smoothness_is_the_sign_of_the_evidence():
    evidence = np.random.default_rng(0).normal(size=(20, 30))
    np.testing.assert_array_equal(graph_cut(np.zeros((20, 30), np.float32), evidence, np.zeros((20, 30), np.int8), 0.0), evidence > 0)


def test_intensities_that_occur_on_one_side_only_are_evidence():
    image = np.repeat([[0.1, 0.5, 0.9]], 30, 0).astype(np.float32)
    logits = intensity_logits(image, image > 0.3, image < 0.7)
    assert (logits[:, 0] < -0.5).all() and (abs(logits[:, 1]) < 0.5).all() and (logits[:, 2] > 0.5).all()
    assert (intensity_logits(image, image > 2, image < 0.7) == 0).all()


def test_a_further_click_is_also_answered_by_what_corrects_beside_the_network():
    shape, displayed = disc(48, 48, 20), disc(48, 38, 12)
    image, clicks = draw_slice(shape, WEAK), clicks_at((48, 38, True), (48, 58, True))
    alone, corrected = (obey_clicks(image, clicks, logits_of(displayed), logits_of(displayed), correct=c) > 0 for c in (None, answer_with(shape)))
    assert dice(corrected, shape) > 0.9 > dice(alone, shape)


def test_a_click_after_a_box_is_answered_by_what_corrects_beside_the_network():
    shape, displayed = disc(48, 48, 20), disc(48, 38, 12)
    box = box_round(shape)
    click = clicks_at((48, 58, True))
    prompt = SlicePrompt(np.concatenate([box.points, click.points]), np.concatenate([box.labels, click.labels]))
    mask = obey_clicks(draw_slice(shape, WEAK), prompt, logits_of(displayed), logits_of(displayed), correct=answer_with(shape)) > 0
    assert dice(mask, shape) > 0.9


def test_clicks_are_obeyed_whatever_corrects_beside_the_network():
    displayed, clicks = disc(48, 48, 20), clicks_at((48, 48, True), (48, 60, False))
    mask = obey_clicks(np.zeros((96, 96), np.float32), clicks, NOTHING, logits_of(displayed), correct=answer_with(~displayed)) > 0
    assert obeys(click_seeds(clicks, mask.shape), mask)


def test_a_first_click_is_not_corrected():
    def correct(*_):
        raise AssertionError

    answer = logits_of(disc(48, 48, 20))
    assert (obey_clicks(np.zeros((96, 96), np.float32), clicks_at((48, 48, True)), answer, correct=correct) > 0).any()


def answer_with(mask):
    """Return what always answers with one mask."""
    return lambda image, prompt, displayed: logits_of(mask)
