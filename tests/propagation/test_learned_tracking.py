"""The tracking network sees each slice where the structure was before, and its answer comes back to that place."""

import numpy as np
import pytest

from lib.imaging.metrics import dice
from lib.model.tracking_network import TRACKING_NETWORK
from lib.propagation.learned_tracking import LOGIT_LIMIT, AnnotatedSlice, LearnedTracker

SHAPE = 90, 110


def disc(y, x, radius):
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def image_of(mask):
    return np.where(mask, 900.0, 100.0).astype(np.float32) + np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float32)


class ChannelAgain:
    """Stands for a network that answers with one of its channels, and keeps what it saw."""

    def __init__(self, channel):
        self.channel, self.seen = channel, []

    def __call__(self, inputs):
        self.seen.append(inputs[0])
        return 8 * inputs[:, self.channel]


def annotated(t, mask):
    return AnnotatedSlice(t, image_of(mask), mask)


@pytest.mark.parametrize("channel", [2, 6])
def test_the_masks_before_and_at_the_far_end_lie_where_they_are(channel):
    near, far = disc(40, 40, 12), disc(44, 50, 10)
    logits = LearnedTracker(ChannelAgain(channel), [annotated(0, near), annotated(8, far)]).find(2, image_of(near), near)
    assert dice(logits > 0, near if channel == 2 else far) > 0.9
    assert abs(logits).max() <= LOGIT_LIMIT + 1e-4


def test_the_network_is_told_how_far_it_has_come():
    near, network = disc(40, 40, 12), ChannelAgain(2)
    tracker = LearnedTracker(network, [annotated(4, near), annotated(12, near)])
    for step, t in enumerate((6, 8, 10), 1):
        tracker.find(t, image_of(near), near)
        assert float(network.seen[-1][7, 0, 0]) == pytest.approx(step / 4)
        assert float(network.seen[-1][8, 0, 0]) == pytest.approx(1 / step + step / 10)  # No mask was accepted in between.
    tracker.remember(image_of(near), np.where(near, 5.0, -5.0))
    tracker.find(11, image_of(near), near)
    assert float(network.seen[-1][8, 0, 0]) == pytest.approx(1 + 4 / 10)


def test_without_a_far_end_its_channels_are_empty():
    near, network = disc(40, 40, 12), ChannelAgain(2)
    LearnedTracker(network, [annotated(0, near)]).find(1, image_of(near), near)
    assert not network.seen[0][5:8].any()


def test_the_network_that_ships_follows_a_disc_that_moves_and_shrinks():
    discs = [disc(40, 40 + 2 * t, 14 - t) for t in range(7)]
    tracker = LearnedTracker(TRACKING_NETWORK.load_shipped(), [annotated(0, discs[0])])
    previous = discs[0]
    for t in range(1, 7):
        logits = tracker.find(t, image_of(discs[t]), previous)
        tracker.remember(image_of(discs[t]), logits)
        previous = logits > 0
        assert dice(previous, discs[t]) > 0.8


def test_even_images_are_fine():
    near = disc(40, 40, 12)
    tracker = LearnedTracker(TRACKING_NETWORK.load_shipped(), [AnnotatedSlice(0, np.full(SHAPE, 7.0, np.float32), near)])
    assert np.isfinite(tracker.find(1, np.full(SHAPE, 7.0, np.float32), near)).all()
