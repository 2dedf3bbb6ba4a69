"""The evaluation of one labelled image by one protocol: rows of results.csv, and slices to draw."""

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lib.common.errors import OptionError
from lib.evaluation import metrics, overlays
from lib.evaluation.methods.method import Method, can_take, count_clicks, segment_or_empty
from lib.evaluation.protocols import cvpr25, dong, he, isvalidate, rounds, shen
from lib.evaluation.protocols.dong import ProposeMasks
from lib.evaluation.protocols.steps import MODES, ProtocolPlan, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.datasets import Case
from lib.imaging.frames import Frames, looks_like_ct
from lib.imaging.metrics import dice
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume

# In the first ones, clicks are simulated for one method and others get the same; in INTERACTIVE_PROTOCOLS, each method is clicked by
# its own errors.
SHARED_CLICKS_PROTOCOLS = {"he": he, "shen": shen, "dong": dong, "rounds": rounds}
INTERACTIVE_PROTOCOLS = {"cvpr25": cvpr25, "isvalidate": isvalidate}
PROTOCOLS = SHARED_CLICKS_PROTOCOLS | INTERACTIVE_PROTOCOLS
SETTING_NAMES = {name: dong.ALL_SETTINGS if protocol is dong else protocol.SETTINGS for name, protocol in PROTOCOLS.items()}


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that the results of a run depend on, apart from the data. run.json holds these fields.

    Attributes:
        protocol, mode: A key of PROTOCOLS, and one of `lib.evaluation.protocols.steps.MODES`.
        methods: Names of methods. Clicks are simulated for the first, and the others get the same clicks, but for
            INTERACTIVE_PROTOCOLS.
        checkpoint, weights: Name or path of the checkpoint, and the SHA-256 of its file.
        window, axis: See `lib.imaging.frames`; the window "protocol" is the paper's, see `make_target`.
        labels, settings: Names of structures (empty for all) and of the protocol's settings (empty for those of the paper).
        strategy: How the next slice is chosen, in the protocol "rounds".
        channel: The channel of 4D images.
        tolerance_mm: Tolerance of the surface Dice.
        edits: Number of clicks after the first one, in the protocol "isvalidate".
    """

    protocol: str
    mode: str = "described"
    methods: tuple[str, ...] = ("app",)
    checkpoint: str = "embedded"
    weights: str = ""
    window: str = "protocol"
    axis: str = "auto"
    labels: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    strategy: str = "oracle"
    channel: int | None = None
    seed: int = 1
    tolerance_mm: float = metrics.TOLERANCE_MM
    edits: int = isvalidate.DEFAULT_EDITS

    def __post_init__(self):
        for value, allowed, what in ((self.protocol, PROTOCOLS, "protocol"), (self.mode, MODES, "mode")):
            if value not in allowed:
                raise OptionError(f"Unknown {what} {value!r}: use {', '.join(allowed)}.")
        names = SETTING_NAMES[self.protocol]
        for s in self.settings:
            if s not in names:
                raise OptionError(f"The protocol {self.protocol!r} has no setting {s!r}; it has {'; '.join(names[:6])} ...")
        if not 0 < self.tolerance_mm < float("inf"):
            raise OptionError("The tolerance of the surface Dice must be a distance in millimetres above 0.")
        if self.edits < 1:
            raise OptionError("There must be at least one edit.")


def choose_structures(case: Case, settings: EvaluationSettings) -> dict[str, list[int]]:
    """Return the label values of each structure by its name. Values with the same name are one structure; Shen et al. merge all."""
    values_by_name: dict[str, list[int]] = {}
    for value, name in case.labels.items():
        if not settings.labels or name in settings.labels:
            values_by_name.setdefault(name, []).append(value)
    if settings.protocol == "shen" and len(values_by_name) > 1:
        name = "+".join(values_by_name) if len(values_by_name) < 4 else "all labels"
        return {name: [v for values in values_by_name.values() for v in values]}
    return values_by_name


def make_target(volume: Volume, mask: np.ndarray, settings: EvaluationSettings) -> Target:
    """Return the slices of a volume in the run's intensity window, and the reference on them, given as bool (I, J, K).

    The window "protocol" is [-1000, 1000] HU for CT in "he", every slice's own range in "shen" as published, and else "auto".
    """
    window, is_protocol_window = settings.window, settings.window == "protocol"
    if is_protocol_window:
        window = "full" if settings.protocol == "he" and looks_like_ct(volume.array) else "auto"
    frames = Frames.of(volume, window=window, axis=settings.axis)
    target = Target.with_all_slices(frames, frames.from_volume(mask))
    scales_slices = is_protocol_window and settings.protocol == "shen" and settings.mode == "published"
    return target.scale_each_slice() if scales_slices else target


def evaluate_case(case: Case, settings: EvaluationSettings, methods: list[Method], propose_masks: ProposeMasks | None = None) -> dict:
    """Return "rows" of results.csv, one for each structure, setting, round and method, and "overlays", one for each structure.

    Only the protocol "dong" needs `propose_masks`. A file that cannot be read raises UserError.
    """
    volume = read_volume(case.image, channel=settings.channel)
    labels = read_mask(case.label, volume)
    masks = {name: np.isin(labels, values) for name, values in choose_structures(case, settings).items()}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    if settings.protocol in INTERACTIVE_PROTOCOLS:
        return _evaluate_with_own_clicks(case, volume, masks, settings, methods)
    rows, structure_overlays = [], []
    extra = {"propose_masks": propose_masks} if settings.protocol == "dong" else {}
    for name, mask in masks.items():
        target = make_target(volume, mask, settings)
        plan = ProtocolPlan(settings.mode, _make_rng(case, name, settings), settings.settings, settings.strategy)
        step_to_draw, start = None, time.perf_counter()  # The last step of the first setting is drawn.
        for step in PROTOCOLS[settings.protocol].run_steps(methods[0], target, plan, **extra):
            seconds = time.perf_counter() - start
            scores = metrics.score_step(step, step.prediction.mask, settings.tolerance_mm)
            rows.append(_make_row(case, name, step, methods[0].name, scores, seconds))
            rows += _score_other_methods(case, name, step, methods[1:], settings)
            if step_to_draw is None or step.setting == step_to_draw.setting:
                step_to_draw = step
            start = time.perf_counter()
        if step_to_draw is not None:
            structure_overlays.append(overlays.extract_overlay(f"{case.name}, {name}", step_to_draw))
    return {"rows": rows, "overlays": structure_overlays}


def _evaluate_with_own_clicks(
    case: Case, volume: Volume, masks: dict[str, np.ndarray], settings: EvaluationSettings, methods: list[Method]
) -> dict:
    """Return what `evaluate_case` returns; methods that take no clicks are left out, and the first method's last steps are drawn."""
    targets: dict[str, Target] = {}
    for name, mask in masks.items():
        frames = next(iter(targets.values())).frames if targets else make_target(volume, mask, settings).frames
        targets[name] = Target.with_all_slices(frames, frames.from_volume(mask))
    rows, last_steps = [], {}
    for method in (m for m in methods if m.takes_clicks and targets):
        for name, step in _run_own_clicks(case, method, targets, settings):
            mask, reference, frames = step.prediction.mask, step.target.reference, step.target.frames
            spacing_mm = frames.slice_mm, *frames.pixel_mm
            nsd = metrics.surface_dice(mask, reference, spacing_mm, settings.tolerance_mm)
            rows.append(_make_row(case, name, step, method.name, {"dice": dice(mask, reference), "nsd": nsd}, step.seconds))
            if method is methods[0]:
                last_steps[name] = step
    pictures = [overlays.extract_overlay(f"{case.name}, {name}", step) for name, step in last_steps.items()]
    return {"rows": rows, "overlays": pictures}


def _run_own_clicks(
    case: Case, method: Method, targets: dict[str, Target], settings: EvaluationSettings
) -> Iterator[tuple[str, Step]]:
    """Yield the names of structures and the steps of one method in one of the INTERACTIVE_PROTOCOLS."""
    if settings.protocol == "cvpr25":
        yield from cvpr25.run_steps(method, targets)
        return
    for name, target in targets.items():
        for step in isvalidate.run_steps(method, target, _make_rng(case, name, settings), settings.edits):
            yield name, step


def _score_other_methods(
    case: Case, name: str, step: Step, methods: list[Method], settings: EvaluationSettings
) -> Iterator[dict]:
    """Yield the rows of the other methods with the same prompts, leaving out methods that cannot take these prompts."""
    for method in methods:
        if can_take(method, step.annotations):
            start = time.perf_counter()
            method.open(step.target.frames)
            mask = segment_or_empty(method, step.target.frames, step.annotations, step.propagation_mode).mask
            seconds = time.perf_counter() - start
            yield _make_row(case, name, step, method.name, metrics.score_step(step, mask, settings.tolerance_mm), seconds)


def _make_rng(case: Case, name: str, settings: EvaluationSettings) -> np.random.Generator:
    """Return the generator of a structure's random choices: the same for all methods, whatever was evaluated before."""
    return np.random.default_rng([settings.seed, zlib.crc32(f"{case.name}/{name}".encode())])


def _make_row(case: Case, name: str, step: Step, method: str, scores: dict[str, float], seconds: float) -> dict:
    """Return a row of results.csv. Slices are numbered as in the case's volume.

    In SHARED_CLICKS_PROTOCOLS, the first method's seconds include simulating clicks.
    """
    return {
        "case": case.name, "label": name, "setting": step.setting, "round": step.round, "method": method,
        "slices": " ".join(str(step.target.source_slices[t]) for t in step.annotations), "clicks": count_clicks(step.annotations),
        **{k: round(v, 5) for k, v in scores.items()}, "seconds": round(seconds, 3),
    }  # fmt: skip
