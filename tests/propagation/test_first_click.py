"""What a first click means: a part, the whole, or more."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.model import checkpoints
from lib.model.features import SliceFeatures
from lib.model.sam2_network import Sam2Network
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.first_click import choose_alternative, clearest_mask, decode_first_click, share_on_frame_edge, shrink

CLICK = SlicePrompt(np.array([[32.0, 32.0]]), np.array([1], np.int32))


def square(low, high, side=64):
    mask = np.zeros((side, side), bool)
    mask[low:high, low:high] = True
    return mask


IMAGE = np.where(square(20, 44), 150, 60).astype(np.uint8)


def test_the_alternative_with_the_clearest_outline_is_taken():
    masks = [square(26, 38), square(20, 44), square(14, 50)]
    assert clearest_mask(IMAGE, CLICK, masks) == 1


def test_of_equally_clear_outlines_the_one_that_others_resemble_is_taken():
    one, other = np.roll(square(26, 38), -12, 1), np.roll(square(26, 38), 12, 1)
    image = np.where(one | other, 150, 60).astype(np.uint8)
    assert clearest_mask(image, CLICK, [one, other, one]) == 0
    assert clearest_mask(image, CLICK, [one, other, other]) == 1


def test_the_edge_of_the_frame_is_no_edge_of_the_image():
    half = np.zeros((64, 64), np.uint8)
    half[:, :36] = 150
    background = half == 150  # Three of its four sides lie on the edge of the frame.
    half[26:38, 26:36] = 60
    assert clearest_mask(half, CLICK, [background, square(26, 38)]) == 1


@pytest.mark.parametrize(
    "mask, share",
    [(square(10, 20), 0.0), (square(0, 64), 1.0), (np.zeros((64, 64), bool), 0.0), (square(0, 3), 5 / 8)],
)
def test_share_on_frame_edge(mask, share):
    assert share_on_frame_edge(mask) == pytest.approx(share)


def test_shrinking_averages_blocks():
    assert shrink(np.array([[1, 3, 5], [5, 7, 9], [2, 4, 8]], np.int16), 2).tolist() == [[4, 7], [3, 8]]
    assert shrink(IMAGE, 1).tolist() == IMAGE.tolist()


@pytest.mark.parametrize("scale", [1, 3])  # Three times as large, alternatives are compared in a shrunken copy.
def test_the_choice_does_not_depend_on_the_size_of_the_image(scale):
    enlarge = lambda x: np.kron(x, np.ones((scale, scale), x.dtype))  # noqa: E731
    logits = [enlarge(np.where(square(*s), 4.0, -4.0).astype(np.float32)) for s in ((30, 36), (19, 43), (2, 62))]
    click = SlicePrompt(CLICK.points * scale, CLICK.labels)
    assert choose_alternative(enlarge(IMAGE).astype(np.int16), enlarge(IMAGE), click, logits) == 1


@pytest.fixture(scope="module")
def network():
    return Sam2Network(checkpoints.load(checkpoints.find("embedded")), nullcontext)


def features(network, image):
    volume = Volume(np.ascontiguousarray(image.T[:, :, None].astype(np.int16)), np.diag([1, 1, 5, 1.0]))
    return SliceFeatures(network.model, Frames.of(volume, axis=2, window="0,255"), torch.device("cpu"), nullcontext, 1)


@pytest.mark.parametrize("answer", [square(29, 35), square(20, 44)])
def test_a_plain_square_is_found_whatever_the_first_answer(network, answer):
    first = torch.from_numpy(np.where(answer, 4.0, -4.0).astype(np.float32))
    found = decode_first_click(network, features(network, IMAGE), 0, CLICK, [first])
    wanted = square(20, 44)
    assert 2 * ((found > 0).numpy() & wanted).sum() / ((found > 0).sum() + wanted.sum()) > 0.95


def test_without_an_alternative_at_the_click_there_is_no_answer(network):
    elsewhere = torch.from_numpy(np.where(square(2, 62) & ~square(20, 44), 4.0, -4.0).astype(np.float32))  # Too large for a crop.
    assert decode_first_click(network, features(network, IMAGE), 0, CLICK, [elsewhere]) is None


def test_a_large_structure_has_no_crop_and_is_chosen_from_the_answers_to_the_whole_slice(network):
    image = np.where(square(4, 60), 150, 60).astype(np.uint8)
    answers = [torch.from_numpy(np.where(square(*s), 4.0, -4.0).astype(np.float32)) for s in ((0, 62), (4, 60), (20, 40))]
    found = decode_first_click(network, features(network, image), 0, CLICK, answers)
    assert ((found > 0).numpy() ^ square(4, 60)).sum() < 60
