"""An engine with the embedded checkpoint and a volume that tests of a module share."""

import pytest

from lib.engine.segmenter import Segmenter
from tests.engine.ball import ball_volume


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter()


@pytest.fixture(scope="module")
def volume():
    return ball_volume()
