"""Train the correction network on simulated sessions of clicks and boxes."""

import numpy as np
import torch

from lib.model.correction_network import CORRECTION_NETWORK, CorrectionNetwork
from lib.training.correction_crops import collect_crops
from lib.training.session_training import SessionSettings, SessionTraining, random_sample
from lib.training.simulated_corrections import CorrectionSession

_SHARES = {"regions": 0.36, "rings": 0.1, "generated": 0.26}  # Of the sessions; the others are on labelled structures.
_CLICKS, _CHECKED = 5, 48  # Clicks of a check, and crops of each kind.


class CorrectionTraining(SessionTraining):
    """A run of the training; see `SessionTraining`.

    Raises:
        UserError: Settings are impossible, a folder cannot be read, or the weights to start from do not fit.
    """

    def __init__(self, settings: SessionSettings):
        super().__init__(settings, CORRECTION_NETWORK)
        self._crops = self.load_samples("crops.npz", collect_crops, held_back=False)
        self._held_back = self.load_samples("held_back_crops.npz", collect_crops, held_back=True)

    @torch.inference_mode()
    def check(self) -> dict[str, float]:
        """Return the mean Dice after the first and the last of five clicks, by kind, on crops of held-back patients and new generated ones."""
        network, figures = self.averaged.eval(), {}
        for kind, crops in self._held_back.items():
            chosen = np.random.default_rng(0).permutation(len(crops["images"]))[:_CHECKED]
            dices = [_corrected_dices(network, *_crop(crops, n)) for n in chosen]
            figures |= {f"check {kind} {count}": float(np.mean([d[count - 1] for d in dices])) for count in (1, _CLICKS)}
        return figures

    def new_session(self) -> CorrectionSession:
        """Return a session on a crop whose kind is chosen by its share."""
        kind, n = random_sample({k: len(c["images"]) for k, c in self._crops.items()}, _SHARES, self._random)
        return CorrectionSession.begin(*_crop(self._crops[kind], n), self._random)


def _crop(crops: dict[str, np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    return crops["images"][n], np.unpackbits(crops["masks"][n], axis=-1).astype(bool)


def _corrected_dices(network: CorrectionNetwork, image: np.ndarray, mask: np.ndarray) -> list[float]:
    """Return the Dice after each of `_CLICKS` clicks on a crop; after the mask has become right, that of the last one."""
    session, dices = CorrectionSession.check(image, mask, _CLICKS), []
    while True:
        logits = network(session.network_input()[None])[0]
        answer, reference = (logits > 0).numpy(), session.reference
        dices.append(2 * float((answer & reference).sum()) / max(float(answer.sum() + reference.sum()), 1.0))
        if not session.answer(logits, None):
            return dices + dices[-1:] * (_CLICKS - len(dices))
