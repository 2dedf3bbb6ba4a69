"""What prompts say about each cell of a grid if no mask is known: where a random walk from it would end (Grady, PAMI 2006)."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

EDGE_WEIGHT = 6.0  # Of the squared difference of two intensities, in standard deviations of the image, that makes a step less likely.
INSIDE, OUTSIDE = 1, -1
_TOLERANCE, _MOST_STEPS = 1e-2, 300  # Of the conjugate gradients.


def walk_to_seeds(image: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return the probability that a random walk from each cell reaches a seed inside first, float32 in the shape of the grid.

    Args:
        image: Intensities in standard deviations. A walk hardly crosses its edges.
        seeds: int8, `INSIDE`, `OUTSIDE`, else 0.
    """
    weights = [np.exp(-EDGE_WEIGHT * np.diff(image, axis=axis) ** 2) + 1e-6 for axis in range(3)]
    total, is_free = np.full(image.shape, 1e-6, np.float32), seeds == 0
    for axis, weight in enumerate(weights):
        _after(total, axis)[...] += weight
        _before(total, axis)[...] += weight

    def from_neighbours(values: np.ndarray) -> np.ndarray:
        result = np.zeros_like(values)
        for axis, weight in enumerate(weights):
            _after(result, axis)[...] += weight * _before(values, axis)
            _before(result, axis)[...] += weight * _after(values, axis)
        return result

    def apply(vector: np.ndarray) -> np.ndarray:
        values = vector.reshape(image.shape)
        return np.where(is_free, total * values - from_neighbours(values), values).ravel()

    decided = (seeds == INSIDE).astype(np.float32)
    wanted = np.where(is_free, from_neighbours(decided), 0).ravel()
    scale = np.where(is_free, 1 / total, 1).ravel()
    shape, kind = (image.size, image.size), np.float32
    solution, _ = cg(
        LinearOperator(shape, apply, dtype=kind), wanted, rtol=_TOLERANCE, maxiter=_MOST_STEPS,
        M=LinearOperator(shape, lambda vector: scale * vector, dtype=kind),
    )  # fmt: skip
    return np.where(is_free, solution.reshape(image.shape), decided)


def _before(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the view of a 3D array without the last cells along an axis."""
    return array[tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))]


def _after(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the view of a 3D array without the first cells along an axis."""
    return array[tuple(slice(1, None) if a == axis else slice(None) for a in range(3))]
