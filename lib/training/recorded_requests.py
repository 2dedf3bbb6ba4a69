"""Record what the volume network is asked for in sessions of the engine, for its training.

A session begins with a click within a structure, a box, or several slices that are clicked or painted. Then clicks correct random voxels
where the engine's answer, with the present volume network, is wrong.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lib.engine.loaded_network import LoadedNetwork
from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging.frames import Frames
from lib.prompts.simulated_annotator import box_on_slice, clicks_on_slice, largest_slice, slices_at_shares

_CORRECTIONS = {"click": 9, "box": 5, "clicked slices": 2, "painted slices": 2}  # Clicks that follow each beginning of a session.
_SHARES = 0.4, 0.25, 0.25, 0.1  # Of these beginnings.
_CLICKS_ON_SLICE = 3


def recorded_requests(frames: Frames, reference: np.ndarray, random: np.random.Generator) -> Iterator[tuple]:
    """Yield arguments of `shrink_to_cells`, one for each request of a session about a structure, bool (T, Y, X), not empty.

    Requests after which the engine finds nothing are left out.
    """
    engine = _RecordingSegmenter(frames)
    beginning = str(random.choice(list(_CORRECTIONS), p=_SHARES))
    prompts = _first_prompts(beginning, engine, frames, reference, random)
    for remaining in range(_CORRECTIONS[beginning], -1, -1):
        wrong = engine.mask(prompts) ^ reference
        if engine.asked is not None:
            yield engine.asked
        if not remaining or not wrong.any():
            return
        t, y, x = (int(v) for v in random.choice(np.argwhere(wrong)))
        prompts = _merged(prompts, {"positive" if reference[t, y, x] else "negative": [frames.to_voxel(t, y, x)]})


class _RecordingSegmenter(Segmenter):
    """An engine that remembers what the volume network was last asked for: the arguments of `shrink_to_cells`, or None."""

    def __init__(self, frames: Frames):
        super().__init__()
        low, high = frames.bounds
        self._frames, self.asked = frames, None
        self._options = Options(device="cpu", window=f"{float(low)!r},{float(high)!r}", axis=str(frames.axis))

    def mask(self, prompts: dict, propagate: bool = True) -> np.ndarray:
        """Return the mask, bool (T, Y, X), that prompts, keywords of `make_prompts`, lead to."""
        self.asked, options, volume = None, replace(self._options, propagate=propagate), self._frames.volume
        return self._frames.from_volume(self.segment(volume, self.prompts(volume, options, **prompts), options).mask)

    def _network(self, options: Options) -> LoadedNetwork:
        network = super()._network(options)

        def adapt(stack: np.ndarray, *request) -> None:
            self.asked = (stack.copy(), *request) if stack.any() else None
            network.adapt(stack, *request)

        return replace(network, adapt=adapt)


def _first_prompts(beginning: str, engine: _RecordingSegmenter, frames: Frames, reference: np.ndarray, random: np.random.Generator) -> dict:
    """Return what a session begins with, as keywords of `make_prompts`."""
    if beginning == "click":
        return {"positive": [frames.to_voxel(*(int(v) for v in random.choice(np.argwhere(reference))))]}
    if beginning == "box":
        return box_on_slice(frames, reference, largest_slice(reference))
    slices = slices_at_shares(reference, sorted(random.uniform(0.05, 0.95, random.integers(1, 4))))
    if beginning == "painted slices":
        return {"masks": {t: reference[t].T for t in slices}}
    prompts: dict = {}
    for t in slices:
        clicks = clicks_on_slice(lambda p, t=t: engine.mask(p, propagate=False)[t], frames, reference, t, _CLICKS_ON_SLICE)
        prompts = _merged(prompts, clicks)
    return prompts


def _merged(prompts: dict, further: dict) -> dict:
    """Return prompts with further clicks."""
    return prompts | {kind: [*prompts.get(kind, []), *clicks] for kind, clicks in further.items()}
