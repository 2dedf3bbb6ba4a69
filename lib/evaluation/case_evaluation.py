"""The evaluation of one labelled image by one protocol: rows of results.csv, and slices to draw."""

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lib.common.errors import OptionError
from lib.evaluation import metrics, overlays
from lib.evaluation.methods.method import Method, count_clicks, segment_or_empty
from lib.evaluation.protocols import dong, he, rounds, shen
from lib.evaluation.protocols.dong import ProposeMasks
from lib.evaluation.protocols.steps import MODES, ProtocolPlan, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.datasets import Case
from lib.imaging.frames import Frames, looks_like_ct
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume

PROTOCOLS = {"he": he, "shen": shen, "dong": dong, "rounds": rounds}
SETTING_NAMES = {"he": he.SETTINGS, "shen": shen.SETTINGS, "dong": dong.ALL_SETTINGS, "rounds": rounds.SETTINGS}


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that the results of a run depend on, apart from the data. run.json holds these fields.

    Attributes:
        protocol, mode: A key of PROTOCOLS, and one of `lib.evaluation.protocols.steps.MODES`.
        methods: Names of methods. Clicks are simulated for the first; the others get the same clicks.
        checkpoint, weights: Name or path of the checkpoint, and the SHA-256 of its file.
        window, axis: See `lib.imaging.frames`; the window "protocol" is the paper's, see `make_target`.
        labels, settings: Names of structures (empty for all) and of the protocol's settings (empty for those of the paper).
        strategy: How the next slice is chosen, in the protocol "rounds".
        channel: The channel of 4D images.
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

    def __post_init__(self):
        for value, allowed, what in ((self.protocol, PROTOCOLS, "protocol"), (self.mode, MODES, "mode")):
            if value not in allowed:
                raise OptionError(f"Unknown {what} {value!r}: use {', '.join(allowed)}.")
        names = SETTING_NAMES[self.protocol]
        for s in self.settings:
            if s not in names:
                raise OptionError(f"The protocol {self.protocol!r} has no setting {s!r}; it has {'; '.join(names[:6])} ...")


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
    rows, structure_overlays = [], []
    extra = {"propose_masks": propose_masks} if settings.protocol == "dong" else {}
    for name, values in choose_structures(case, settings).items():
        mask = np.isin(labels, values)
        if not mask.any():
            continue
        target = make_target(volume, mask, settings)
        rng = np.random.default_rng([settings.seed, zlib.crc32(f"{case.name}/{name}".encode())])
        plan = ProtocolPlan(settings.mode, rng, settings.settings, settings.strategy)
        step_to_draw, start = None, time.perf_counter()  # The last step of the first setting is drawn.
        for step in PROTOCOLS[settings.protocol].run_steps(methods[0], target, plan, **extra):
            rows.append(_make_row(case, name, step, methods[0].name, step.prediction.mask, time.perf_counter() - start))
            rows += _score_other_methods(case, name, step, methods[1:])
            if step_to_draw is None or step.setting == step_to_draw.setting:
                step_to_draw = step
            start = time.perf_counter()
        if step_to_draw is not None:
            structure_overlays.append(overlays.extract_overlay(f"{case.name}, {name}", step_to_draw))
    return {"rows": rows, "overlays": structure_overlays}


def _score_other_methods(case: Case, name: str, step: Step, methods: list[Method]) -> Iterator[dict]:
    """Yield the rows of the other methods with the same prompts, leaving out methods that cannot take these prompts."""
    for method in methods:
        if method.takes_masks or not any(p.mask is not None and p.mask.any() for p in step.annotations.values()):
            start = time.perf_counter()
            method.open(step.target.frames)
            prediction = segment_or_empty(method, step.target.frames, step.annotations, step.propagation_mode)
            yield _make_row(case, name, step, method.name, prediction.mask, time.perf_counter() - start)


def _make_row(case: Case, name: str, step: Step, method: str, mask: np.ndarray, seconds: float) -> dict:
    """Return a row of results.csv. Slices are numbered as in the case's volume; the first method's seconds include simulating clicks."""
    return {
        "case": case.name, "label": name, "setting": step.setting, "round": step.round, "method": method,
        "slices": " ".join(str(step.target.source_slices[t]) for t in step.annotations), "clicks": count_clicks(step.annotations),
        **{k: round(v, 5) for k, v in metrics.score_step(step, mask).items()}, "seconds": round(seconds, 3),
    }  # fmt: skip
