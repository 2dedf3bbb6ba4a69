"""Discs for the tests of the small networks' training."""

import numpy as np


def disc(side, y, x, radius):
    """Return a disc, bool (side, side)."""
    rows, columns = np.ogrid[:side, :side]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
