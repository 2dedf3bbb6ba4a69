"""Our own protocol: the rounds of He et al. 2024 with the clicks of Shen et al. 2024 and any strategy for the next slice."""

from collections.abc import Iterator

from lib.common.errors import OptionError
from lib.engine.result import Result
from lib.evaluation.methods.method import Annotations, Method, Prediction, PropagationMode
from lib.evaluation.protocols.steps import ProtocolPlan, Step
from lib.evaluation.protocols.target import Target
from lib.prompts.simulated_annotator import box_annotator, click_annotator, painting_annotator
from lib.prompts.volume_prompts import group_by_slice, make_prompts
from lib.quality import annotation_loop
from lib.quality.next_slice import STRATEGIES

ANNOTATORS = {"3 clicks": click_annotator(3), "5 clicks": click_annotator(5), "box": box_annotator, "painted": painting_annotator}
SETTINGS = tuple(ANNOTATORS)
DEFAULT_SETTINGS = ("3 clicks",)
MAX_SLICES = 8
STRATEGIES_WITH_ESTIMATES = ("estimator", "wrong_voxels")


def run_steps(method: Method, target: Target, plan: ProtocolPlan) -> Iterator[Step]:
    """Yield one step for each annotated slice; the setting says how a slice is annotated.

    Raise OptionError if the strategy is unknown, or needs estimates that the method does not return.
    """
    if plan.strategy not in STRATEGIES:
        raise OptionError(f"Unknown strategy {plan.strategy!r}: use {', '.join(STRATEGIES)}.")
    frames = target.frames
    method.open(frames)
    for setting in plan.settings or DEFAULT_SETTINGS:
        predictions: list[tuple[Annotations, Prediction]] = []

        def segment(prompts: dict, propagate: bool, predictions=predictions) -> Result:
            annotations = group_by_slice(make_prompts(frames.volume, axis=frames.axis, **prompts), frames)
            prediction = method.segment(annotations, PropagationMode(propagate=propagate))
            predictions.append((annotations, prediction))
            if prediction.result is None and plan.strategy in STRATEGIES_WITH_ESTIMATES:
                raise OptionError(f"The strategy {plan.strategy!r} needs estimates, which {method.name!r} does not give: use oracle.")
            return prediction.result or Result(frames.to_volume(prediction.mask), frames.axis, tuple(sorted(annotations)))

        annotation_rounds = annotation_loop.annotation_rounds(
            segment, frames, target.reference, STRATEGIES[plan.strategy], ANNOTATORS[setting], count=MAX_SLICES
        )
        for number, annotation_round in enumerate(annotation_rounds, 1):
            annotations, prediction = predictions[-1]
            yield Step(setting, number, target, annotations, PropagationMode(), prediction, annotation_round.slice)
