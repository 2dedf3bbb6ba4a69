"""Our own protocol: the rounds of He et al. 2024 with the clicks of Shen et al. 2024 and any strategy for the next slice."""

from collections.abc import Iterator

import numpy as np

from lib.common.errors import OptionError
from lib.engine.result import Result
from lib.evaluation.methods.method import Annotations, Answer, How, Method
from lib.evaluation.protocols.steps import Plan, Step
from lib.evaluation.protocols.target import Target
from lib.prompts import simulated_annotator
from lib.prompts.volume_prompts import group_by_slice, make_prompts
from lib.quality import annotation_loop
from lib.quality.next_slice import STRATEGIES

SETTINGS = ("3 clicks", "5 clicks", "box", "painted")
DEFAULT = ("3 clicks",)
SLICES = 8
ANNOTATORS = {
    "3 clicks": simulated_annotator.click_annotator(3), "5 clicks": simulated_annotator.click_annotator(5), "box": simulated_annotator.box_annotator, "painted": simulated_annotator.painting_annotator,
}  # fmt: skip
NEEDS_ESTIMATES = ("estimator", "wrong_voxels")


def steps(method: Method, target: Target, plan: Plan) -> Iterator[Step]:
    """One step for each annotated slice; a setting says how a slice is annotated.

    Raises:
        OptionError: unknown strategy, or one that needs estimates which the method does not give.
    """
    if plan.strategy not in STRATEGIES:
        raise OptionError(f"Unknown strategy {plan.strategy!r}: use {', '.join(STRATEGIES)}.")
    frames = target.frames
    method.open(frames)
    for setting in plan.settings or DEFAULT:
        answers: list[tuple[Annotations, Answer]] = []

        def segment(prompts: dict, propagate: bool, answers=answers) -> Result:
            annotations = group_by_slice(make_prompts(frames.volume, axis=frames.axis, **prompts), frames)
            answer = method.segment(annotations, How(propagate=propagate))
            answers.append((annotations, answer))
            if answer.result is None and plan.strategy in NEEDS_ESTIMATES:
                raise OptionError(f"The strategy {plan.strategy!r} needs estimates, which {method.name!r} does not give: use oracle.")
            return answer.result or _bare(answer.mask, frames, annotations)

        found = annotation_loop.annotation_rounds(
            segment, frames, target.reference, STRATEGIES[plan.strategy], ANNOTATORS[setting], count=SLICES
        )  # fmt: skip
        for number, one in enumerate(found, 1):
            annotations, answer = answers[-1]
            yield Step(setting, number, target, annotations, How(), answer, one.slice)


def _bare(mask: np.ndarray, frames, annotations: Annotations) -> Result:
    """A result that says nothing of the mask."""
    unknown = np.full(len(frames), np.nan)
    return Result(frames.to_volume(mask), frames.axis, tuple(sorted(annotations)), unknown, unknown, unknown, unknown[:, None], unknown)
