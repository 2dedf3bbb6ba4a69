"""A painted structure that is thinner than a cell of the network's masks is tracked enlarged, not lost."""

import numpy as np

from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging.volume import Volume


def test_a_thin_painted_structure_is_tracked_in_its_surroundings():
    truth = np.zeros((256, 256, 7), bool)
    truth[120:140, 100:102] = True  # Two pixels wide; a cell is four.
    volume = Volume(np.where(truth, 200.0, 50.0).astype(np.float32), np.eye(4), "thin")
    segmenter, options = Segmenter(), Options(axis="2", window="0,255")
    result = segmenter.segment(volume, segmenter.prompts(volume, options, masks={3: truth[:, :, 3]}), options)
    assert all(tracked.crop is not None for tracked in result.tracked)
    assert result.mask[:, :, 2].any() and result.mask[:, :, 4].any()
