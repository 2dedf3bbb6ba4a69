"""One labelled image through one protocol: rows of figures, and slices to show."""

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lib.common.errors import OptionError
from lib.evaluation import metrics, overlays
from lib.evaluation.methods.method import Method, ask, count_clicks
from lib.evaluation.protocols import dong, he, rounds, shen
from lib.evaluation.protocols.steps import MODES, Plan, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.datasets import Case
from lib.imaging.frames import Frames, looks_like_ct
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume

PROTOCOLS = {"he": he, "shen": shen, "dong": dong, "rounds": rounds}
NAMES = {"he": he.SETTINGS, "shen": shen.SETTINGS, "dong": dong.ALL, "rounds": rounds.SETTINGS}  # of settings


@dataclass(frozen=True)
class Settings:
    """What figures depend on.

    Attributes:
        protocol, mode: of PROTOCOLS and `lib.evaluation.protocols.steps.MODES`.
        methods: names; the clicks are made for the first, the others get the same.
        checkpoint, weights: its name, and the SHA-256 of its file.
        window, axis: see `lib.imaging.frames`; the window "protocol" is the paper's, see `target_of`.
        labels: names of structures, empty for all. settings: see the protocol, empty for the paper's.
        channel: of 4D images.
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
        for s in self.settings:
            if s not in NAMES[self.protocol]:
                some = "; ".join(NAMES[self.protocol][:6])
                raise OptionError(f"The protocol {self.protocol!r} has no setting {s!r}; it has {some} ...")


def structures(case: Case, settings: Settings) -> dict[str, list[int]]:
    """Values of each structure by name: values of one name are one structure; Shen et al. merge all."""
    found: dict[str, list[int]] = {}
    for value, name in case.labels.items():
        if not settings.labels or name in settings.labels:
            found.setdefault(name, []).append(value)
    if settings.protocol == "shen" and len(found) > 1:
        name = "+".join(found) if len(found) < 4 else "all labels"
        return {name: [v for values in found.values() for v in values]}
    return found


def target_of(volume: Volume, mask: np.ndarray, settings: Settings) -> Target:
    """The slices and the reference, bool (I, J, K), in the intensity window of the run.

    The window "protocol" is [-1000, 1000] HU for CT in "he", every slice on its own in "shen" as published, else "auto".
    """
    window, own = settings.window, settings.window == "protocol"
    if own:
        window = "full" if settings.protocol == "he" and looks_like_ct(volume.array) else "auto"
    frames = Frames.of(volume, window=window, axis=settings.axis)
    target = Target.of(frames, frames.from_volume(mask))
    return target.scaled() if own and settings.protocol == "shen" and settings.mode == "published" else target


def steps_of(settings: Settings, method: Method, target: Target, seed: list[int], propose=None) -> Iterator[Step]:
    """The protocol on one structure."""
    plan = Plan(settings.mode, np.random.default_rng(seed), settings.settings, settings.strategy)
    more = {"propose": propose} if settings.protocol == "dong" else {}
    return PROTOCOLS[settings.protocol].steps(method, target, plan, **more)


def evaluate_case(case: Case, settings: Settings, methods: list[Method], propose=None) -> dict:
    """{"rows": one for each structure, setting, round and method, "overlays": slices to show}.

    Raises:
        UserError: unreadable files.
    """
    volume = read_volume(case.image, channel=settings.channel)
    labels = read_mask(case.label, volume)
    rows, shown = [], []
    for name, values in structures(case, settings).items():
        mask = np.isin(labels, values)
        if not mask.any():
            continue
        target = target_of(volume, mask, settings)
        seed = [settings.seed, zlib.crc32(f"{case.name}/{name}".encode())]
        last = None
        start = time.perf_counter()
        for step in steps_of(settings, methods[0], target, seed, propose):
            rows.append(_row(case, name, step, methods[0].name, step.answer.mask, time.perf_counter() - start))
            rows += _follow(case, name, step, methods[1:])
            if last is None or step.setting == last.setting:
                last = step
            start = time.perf_counter()
        if last is not None:
            shown.append(overlays.cut(f"{case.name}, {name}", last))
    return {"rows": rows, "overlays": shown}


def _follow(case: Case, name: str, step: Step, methods: list[Method]) -> Iterator[dict]:
    """Rows of the other methods, with the same prompts; of those that can take them."""
    for method in methods:
        if method.takes_masks or not any(p.mask is not None and p.mask.any() for p in step.annotations.values()):
            start = time.perf_counter()
            method.open(step.target.frames)
            answer = ask(method, step.target.frames, step.annotations, step.how)
            yield _row(case, name, step, method.name, answer.mask, time.perf_counter() - start)


def _row(case: Case, name: str, step: Step, method: str, mask: np.ndarray, seconds: float) -> dict:
    """With `slices` in the order of annotation, as slices of the case's own volume. `seconds` include simulating the clicks."""
    figures = {k: round(v, 5) for k, v in metrics.score(step, mask).items()}
    return {
        "case": case.name, "label": name, "setting": step.setting, "round": step.round, "method": method,
        "slices": " ".join(str(step.target.index[t]) for t in step.annotations), "clicks": count_clicks(step.annotations),
        **figures, "seconds": round(seconds, 3),
    }  # fmt: skip
