"""What a protocol is given (`ProtocolPlan`) and what it yields (`Step`)."""

import math
from dataclasses import dataclass, field

import numpy as np

from lib.evaluation.methods.method import Annotations, Prediction, PropagationMode
from lib.evaluation.protocols.target import Target

MODES = ("described", "published")  # What the paper's text says, or what the authors' published code computes.


@dataclass(frozen=True, eq=False)
class ProtocolPlan:
    """Everything that a protocol may depend on besides the method and the target.

    Attributes:
        mode: One of MODES.
        rng: Source of all random choices, seeded by run, case and structure.
        settings: Names of the settings to run, see the protocol; empty for all that the paper reports.
        strategy: How the next slice is chosen, in the protocol "rounds" only.
    """

    mode: str
    rng: np.random.Generator
    settings: tuple[str, ...] = ()
    strategy: str = "oracle"

    @property
    def as_published(self) -> bool:
        """Whether the authors' code is followed where it differs from the paper's text."""
        return self.mode == "published"


@dataclass(frozen=True, eq=False)
class ScoredSlices:
    """Which slices are scored, and in which unit the distances between surfaces are.

    Attributes:
        indices: The scored slices in the order in which they are stacked; None for all slices.
        in_mm: Whether distances are in mm, by the volume's spacing; else they are in voxels.
        weights: Weight of each slice in the pooled slice IoU, float (T,); None if that is not computed.
    """

    indices: np.ndarray | None = None
    in_mm: bool = True
    weights: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One round of one setting.

    Attributes:
        setting, round: The name of the setting, and the number of the round, from 1; from 0 in "cvpr25" and "isvalidate".
        target: The structure that was segmented.
        annotations, propagation_mode: The prompts and how they are used; other methods can be given the same.
        prediction: The prediction of the method for which the clicks were simulated.
        last_annotated: Index of the slice that was annotated last.
        seconds: Seconds that the method took, without simulating the clicks; NaN where the protocol does not measure them.
    """

    setting: str
    round: int
    target: Target
    annotations: Annotations
    propagation_mode: PropagationMode
    prediction: Prediction
    last_annotated: int
    scored_slices: ScoredSlices = field(default_factory=ScoredSlices)
    seconds: float = math.nan
