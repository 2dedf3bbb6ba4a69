"""Train the volume network on simulated requests, and on recorded ones of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lib.imaging.metrics import dice
from lib.model.volume_network import VOLUME_NETWORK
from lib.propagation.volume_correction import Cells
from lib.training.session_training import SessionSettings, SessionTraining, random_sample
from lib.training.volume_samples import VolumeSample, collect_samples, unpack

_SHARES = {"regions": 0.3, "generated": 0.4}  # Of the samples; the others are of labelled structures.
_CHECKED = 40  # Samples of each kind in a check.


@dataclass
class VolumeSession:
    """One request; the network is asked for it once."""

    sample: VolumeSample

    def network_input(self) -> torch.Tensor:
        """Return the network's input, float (CHANNELS, d, h, w)."""
        return self.sample.cells.network_input()

    def target(self) -> torch.Tensor:
        """Return the share of each cell within the structure, float (d, h, w)."""
        return torch.from_numpy(self.sample.reference)

    def answer(self, logits: torch.Tensor, random: np.random.Generator | None) -> bool:
        """Return False: the session has ended."""
        return False


class VolumeTraining(SessionTraining):
    """A run of the training; see `SessionTraining`.

    Raises:
        UserError: Settings are impossible, a folder cannot be read, or the weights to start from do not fit.
    """

    batch = 8

    def __init__(self, settings: SessionSettings):
        super().__init__(settings, VOLUME_NETWORK)
        self._samples, self._held_back = (
            {kind: unpack(packed) for kind, packed in self.load_samples(name, collect_samples, held_back).items()}
            for name, held_back in (("samples.npz", False), ("held_back_samples.npz", True))
        )

    def ask(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the network's answers, logits (d, h, w), one by one: each request has a grid of its own size."""
        return [self.network(i[None])[0] for i in inputs]

    @torch.inference_mode()
    def check(self) -> dict[str, float]:
        """Return the mean Dice by kind on the grid, before and after the network, of held-back patients and new generated volumes."""
        network, figures = self.averaged.eval(), {}
        for kind, samples in self._held_back.items():
            chosen = [samples[n] for n in np.random.default_rng(0).permutation(len(samples))[:_CHECKED]]
            after = [network(s.cells.network_input()[None])[0].numpy() > 0 for s in chosen]
            references = [s.reference > 0.5 for s in chosen]
            masks = {"before": [s.cells.mask > 0.5 for s in chosen], "after": after}
            figures |= {f"check {kind} {name}": float(np.mean([*map(dice, m, references)])) for name, m in masks.items()}
        return figures

    def new_session(self) -> VolumeSession:
        """Return a session on a sample whose kind is chosen by its share."""
        kind, n = random_sample({k: len(s) for k, s in self._samples.items()}, _SHARES, self._random)
        return VolumeSession(varied(self._samples[kind][n], self._random))


def varied(sample: VolumeSample, random: np.random.Generator) -> VolumeSample:
    """Return a sample with axes reversed and swapped, another gamma, noise, or inverted intensities."""
    cells, reference = sample.cells, sample.reference
    names = "image", "mask", "walk"
    arrays = {name: getattr(cells, name) for name in names} | {"reference": reference}
    clicks, sureness, spacing, shape = cells.clicks.copy(), cells.sureness, cells.spacing, reference.shape
    for axis in np.flatnonzero(random.random(3) < 0.5):
        arrays = {name: np.flip(a, axis) for name, a in arrays.items()}
        clicks[:, axis] = shape[axis] - 1 - clicks[:, axis]
        sureness = sureness[::-1] if axis == 0 else sureness
    if random.random() < 0.5:
        arrays, clicks = {name: a.swapaxes(1, 2) for name, a in arrays.items()}, clicks[:, [0, 2, 1, 3]]
        spacing = spacing[[0, 2, 1]]
    image = arrays["image"]
    low, high = np.percentile(image, [random.uniform(0, 3), random.uniform(96, 100)])
    image = np.clip((image - low) / max(high - low, 1e-3), 0, 1) ** np.exp(random.uniform(-0.5, 0.5))
    if random.random() < 0.4:
        image = 1 - image
    if random.random() < 0.4:
        image = image + random.normal(0, random.uniform(0, 0.06), image.shape)
    mask, walk, reference = (np.ascontiguousarray(arrays[name]) for name in ("mask", "walk", "reference"))
    return VolumeSample(Cells(np.ascontiguousarray(image, np.float32), mask, walk, clicks, sureness.copy(), spacing), reference)
