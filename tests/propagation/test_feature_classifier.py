"""The classifier of the encoder's features on drawn maps."""

import numpy as np
import pytest
import torch

from lib.propagation.feature_classifier import FeatureClassifier
from lib.propagation.intensity_classifier import surroundings
from tests.propagation.drawn_shapes import SHAPES, draw_shape

SIDE = 96


class DrawnFeatures:
    """Slices whose fine map (two channels, a third of the masks' side) shows a shape in one channel, and whose coarse map is noise."""

    def __init__(self, shapes, height=SIDE):
        self.side, self.height, self.width = SIDE, height, SIDE
        random = np.random.default_rng(0)
        fine = [np.stack([shape[1::3, 1::3], np.zeros((SIDE // 3,) * 2)]) for shape in shapes]
        self._fine = torch.from_numpy(np.array(fine) + 0.2 * random.normal(size=(len(shapes), 2, SIDE // 3, SIDE // 3))).half()
        self._coarse = torch.from_numpy(random.normal(size=(len(shapes), 3, 8, 8))).float()

    def gather(self, indices):
        levels = [maps[list(indices)] for maps in (self._fine, self._coarse)]
        return [x.flatten(2).permute(2, 0, 1) for x in levels], [], [tuple(x.shape[-2:]) for x in levels]


@pytest.mark.parametrize("name", [n for n in SHAPES if n not in ("thin_wall", "dot")])
def test_what_no_intensity_shows_is_recognized_on_another_slice(name):
    shape = draw_shape(name)
    moved = np.roll(shape, 5, axis=1)
    evidence = FeatureClassifier(DrawnFeatures([shape, moved]), {0: shape}, SIDE).logits(1)
    assert (evidence[moved] > 0).mean() > 0.75 and (evidence[surroundings(moved)] < 0).mean() > 0.75


def test_two_annotated_slices_teach_more_than_one():
    """What one slice shows in the structure only, the other shows around it, too."""
    shape = draw_shape("ring")
    features = DrawnFeatures([shape, ~shape, shape])
    alone, both = (FeatureClassifier(features, {t: shape for t in range(n)}, SIDE).logits(2) for n in (1, 2))
    assert abs(both[shape].mean()) < 0.3 * abs(alone[shape].mean())


def test_padding_of_the_square_is_left_out():
    shape = draw_shape("two_parts")
    part = shape[:72]
    features = DrawnFeatures([shape, shape], height=72)
    evidence = FeatureClassifier(features, {0: part}, SIDE).logits(1)
    assert evidence.shape == part.shape and (evidence[part] > 0).mean() > 0.75


@pytest.mark.parametrize("mask", [np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)])
def test_nothing_is_learned_from_nothing(mask):
    classifier = FeatureClassifier(DrawnFeatures([mask]), {0: mask}, SIDE)
    assert not classifier.has_learned and (classifier.logits(0) == 0).all()
