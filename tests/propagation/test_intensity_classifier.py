"""The classifier of intensities on drawn slices."""

import numpy as np
import pytest

from lib.propagation.intensity_classifier import IntensityClassifier, surroundings
from tests.propagation.drawn_shapes import CLEAR, SHAPES, draw_shape, draw_slice


def disc(radius, y=48, x=48):
    rows, columns = np.ogrid[:96, :96]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "thin_wall"])
def test_the_inside_is_recognized_on_another_slice(name):
    shape = draw_shape(name)
    classifier = IntensityClassifier([draw_slice(shape, CLEAR, seed=1)], [shape])
    evidence = classifier.logits(draw_slice(shape, CLEAR, seed=2))
    around = surroundings(shape)
    assert (evidence[shape] > 0).mean() > 0.75 and (evidence[around] < 0).mean() > 0.75
    assert classifier.leak < 0.2


def test_intensities_beyond_any_window_tell_as_well():
    shape = disc(12)
    image = draw_slice(shape, CLEAR)
    plain, far = (IntensityClassifier([x], [shape]) for x in (image, 40 * image - 5000))
    np.testing.assert_allclose(plain.logits(image), far.logits(40 * image - 5000), atol=0.01)


def test_what_looks_the_same_leaks():
    shape = disc(12)
    nothing = [IntensityClassifier([draw_slice(shape, 0.0, seed)], [shape]).confusion for seed in range(8)]
    assert np.median(nothing) > 0.5 > IntensityClassifier([draw_slice(shape, CLEAR)], [shape]).confusion
    chamber = disc(12) | disc(14, 48, 70)  # The vessel opens into a chamber of the same intensity.
    joined = IntensityClassifier([draw_slice(chamber, CLEAR)], [shape])
    assert IntensityClassifier([draw_slice(shape, CLEAR)], [shape]).leak < 0.1 < joined.leak


@pytest.mark.parametrize("mask", [np.zeros((96, 96), bool), np.ones((96, 96), bool), disc(0)])
def test_nothing_is_learned_from_nothing(mask):
    classifier = IntensityClassifier([draw_slice(mask, CLEAR)], [mask])
    assert classifier.leak == 1 and (classifier.logits(np.zeros((96, 96))) == 0).all()


def test_constant_slices_do_no_harm():
    classifier = IntensityClassifier([np.full((96, 96), 7.0)] * 2, [disc(12), disc(9)])
    assert np.isfinite(classifier.logits(np.full((96, 96), 7.0))).all()
