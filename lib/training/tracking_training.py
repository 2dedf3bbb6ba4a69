"""Train the tracking network on simulated passes through clips."""

import numpy as np
import torch

from lib.imaging.metrics import dice
from lib.model.tracking_network import TRACKING_NETWORK, TrackingNetwork
from lib.training.session_training import SessionSettings, SessionTraining, random_sample
from lib.training.simulated_tracking import TrackingSession, passes_from_largest
from lib.training.tracking_clips import collect_clips

_SHARES = {"regions": 0.2, "generated": 0.36}  # Of the sessions; the others are on labelled structures.
_CHECKED = 40  # Clips of each kind in a check.


class TrackingTraining(SessionTraining):
    """A run of the training; see `SessionTraining`.

    Raises:
        UserError: Settings are impossible, a folder cannot be read, or the weights to start from do not fit.
    """

    def __init__(self, settings: SessionSettings):
        super().__init__(settings, TRACKING_NETWORK)
        self._clips = self.load_samples("clips.npz", collect_clips, held_back=False)
        self._held_back = self.load_samples("held_back_clips.npz", collect_clips, held_back=True)

    @torch.inference_mode()
    def check(self) -> dict[str, float]:
        """Return, by kind, the mean Dice of the slices that hold the structure when it is tracked from its largest cross-section, in clips of
        held-back patients and new generated ones."""
        network, figures = self.averaged.eval(), {}
        for kind, clips in self._held_back.items():
            chosen = np.random.default_rng(0).permutation(len(clips["first"]) - 1)[:_CHECKED]
            dices = [d for n in chosen for d in _tracked_dices(network, *_clip(clips, n))]
            figures[f"check {kind}"] = float(np.mean(dices)) if dices else float("nan")
        return figures

    def new_session(self) -> TrackingSession:
        """Return a session on a clip whose kind is chosen by its share."""
        while True:
            kind, n = random_sample({k: len(c["first"]) - 1 for k, c in self._clips.items()}, _SHARES, self._random)
            if session := TrackingSession.begin(*_clip(self._clips[kind], n), self._random):
                return session


def _clip(clips: dict[str, np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    part = slice(*clips["first"][n : n + 2])
    return clips["images"][part], np.unpackbits(clips["masks"][part], axis=-1).astype(bool)


def _tracked_dices(network: TrackingNetwork, images: np.ndarray, masks: np.ndarray) -> list[float]:
    """Return the Dice of each slice that holds the structure, tracked in both directions from the largest cross-section."""
    dices = []
    for session, references in passes_from_largest(images, masks):
        goes_on = True
        for reference in references[1:]:
            if not goes_on:
                break
            goes_on = session.answer(network(session.network_input()[None])[0], None)
            if reference.any():
                dices.append(dice(session.answered, reference))
    return dices
