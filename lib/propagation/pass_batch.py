"""Runs that go through the network together."""

from collections.abc import Sequence
from dataclasses import dataclass

from lib.model.memory_entries import rows_of
from lib.propagation.gaps import GapPass
from lib.propagation.object_end import ObjectEndDetector


@dataclass
class Group:
    """Runs of one kind on their way through the network together.

    Attributes:
        jobs: index of the stretch and run, longest first. memories, judge: with a row for each.
        absent: of each, how many steps the object has been absent. made: of each, logits (h, w), predicted IoU and score of the steps.
        step: how many are done.
    """

    jobs: list[tuple[int, GapPass]]
    memories: dict
    judge: ObjectEndDetector
    absent: list[int]
    made: list[list]
    step: int = 0

    def of(self, rows: Sequence[int]) -> "Group":
        """These runs only."""
        if len(rows) == len(self.jobs):
            return self
        rows = list(rows)
        jobs, absent, made = ([x[i] for i in rows] for x in (self.jobs, self.absent, self.made))
        return Group(jobs, rows_of(self.memories, rows), self.judge.of(rows), absent, made, self.step)
