"""What a protocol yields: the prompts of a round, what came out, and what of it counts."""

from dataclasses import dataclass, field

import numpy as np

from lib.evaluation.methods.method import Annotations, Answer, How
from lib.evaluation.protocols.target import Target

MODES = ("described", "published")  # the paper's words, or what the authors' code computes


@dataclass(frozen=True, eq=False)
class Plan:
    """What a protocol may depend on.

    Attributes:
        mode: of MODES. rng: source of all random choices, seeded by run, case and structure.
        settings: names of the settings to run, see the protocol; empty for all that the paper reports.
        strategy: which slice comes next, in the protocol "rounds".
    """

    mode: str
    rng: np.random.Generator
    settings: tuple[str, ...] = ()
    strategy: str = "oracle"

    @property
    def published(self) -> bool:
        return self.mode == "published"


@dataclass(frozen=True, eq=False)
class Counting:
    """Which slices count, and how surfaces are compared.

    Attributes:
        slices: indices in the order in which they are stacked; None for all as they come.
        in_mm: distances in mm with the volume's spacing, else in voxels.
        weights: (T,) of the slices in the pooled slice IoU; None leaves it out.
    """

    slices: np.ndarray | None = None
    in_mm: bool = True
    weights: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One round of one setting.

    Attributes:
        setting, round: which (round 1, 2, ...).
        target: what was segmented. annotations, how: the question, which can be put to other methods too.
        answer: of the method that the clicks were made for.
        shown: index of the slice that was annotated last.
    """

    setting: str
    round: int
    target: Target
    annotations: Annotations
    how: How
    answer: Answer
    shown: int
    counting: Counting = field(default_factory=Counting)
