"""The protocol of IS_Validate (Esmaeili et al., arXiv 2510.09499): random clicks on the errors of one structure.

The first click is at a random voxel of the structure. Each edit then adds a click at a random wrong voxel of the whole volume. Each
method is clicked by its own errors; the first click is the same for all.
"""

import time
from collections.abc import Iterator

import numpy as np

from lib.evaluation.methods.method import DEFAULT_MODE, Click, Method, click_prompt, segment_or_empty
from lib.evaluation.protocols.steps import Step
from lib.evaluation.protocols.target import Target

SETTINGS = ("random clicks",)
DEFAULT_EDITS = 20  # The authors make 100 and report figures after fewer, too.

# The authors' tolerances of the surface Dice in mm, by the names of their data sets, which are tasks of the Decathlon.
TOLERANCES_MM = {
    "BrainTumour": 5.0, "Liver": 7.0, "Hippocampus": 1.0, "Prostate": 4.0, "Lung": 2.0, "Pancreas": 5.0, "HepaticVessel": 3.0, "Colon": 4.0,
}  # fmt: skip
DECATHLON_NUMBERS = {
    "MSD01": "BrainTumour", "MSD03": "Liver", "MSD04": "Hippocampus", "MSD05": "Prostate", "MSD06": "Lung", "MSD07": "Pancreas",
    "MSD08": "HepaticVessel", "MSD10": "Colon",
}  # fmt: skip


def choose_tolerance_mm(dataset_name: str, default_mm: float) -> float:
    """Return the tolerance of the surface Dice for a data set, named as by `lib.evaluation.dataset_layouts` or by the authors.

    >>> choose_tolerance_mm("MSD03", 2.0), choose_tolerance_mm("hippocampus", 2.0), choose_tolerance_mm("mine", 2.0)
    (7.0, 1.0, 2.0)
    """
    by_name = {name.lower(): tolerance_mm for name, tolerance_mm in TOLERANCES_MM.items()}
    return by_name.get(DECATHLON_NUMBERS.get(dataset_name, dataset_name).lower(), default_mm)


def choose_voxel(region: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int]:
    """Return (t, y, x) of a voxel of bool (T, Y, X), not empty; all its voxels are equally likely."""
    indices = np.flatnonzero(region)
    return tuple(int(v) for v in np.unravel_index(indices[rng.integers(len(indices))], region.shape))


def run_steps(method: Method, target: Target, rng: np.random.Generator, edits: int = DEFAULT_EDITS) -> Iterator[Step]:
    """Yield a step after the first click (round 0) and after each edit (rounds 1 to `edits`), until the mask is perfect."""
    reference = target.reference
    voxel = choose_voxel(reference, rng)
    clicks_by_slice: dict[int, list[Click]] = {}
    for number in range(edits + 1):
        t, y, x = voxel
        clicks_by_slice.setdefault(t, []).append((bool(reference[t, y, x]), y, x))
        annotations = {s: click_prompt(clicks) for s, clicks in clicks_by_slice.items()}
        start = time.perf_counter()
        method.open(target.frames)
        prediction = segment_or_empty(method, target.frames, annotations)
        seconds = time.perf_counter() - start
        yield Step(SETTINGS[0], number, target, annotations, DEFAULT_MODE, prediction, t, seconds=seconds)
        wrong = prediction.mask ^ reference
        if not wrong.any():
            return
        voxel = choose_voxel(wrong, rng)
