"""Train the correction network on simulated sessions of clicks.

Each step trains on one click of each of `_BATCH` sessions; the network's answers are what the next clicks of these sessions correct. So
the network learns from its own errors, and no click is computed twice.
"""

import logging
import os
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import tqdm

from lib.common.errors import OptionError
from lib.model.correction_network import CorrectionNetwork, load_corrections
from lib.training.correction_crops import Crops, collect_crops
from lib.training.simulated_corrections import Session
from lib.training.training_log import TrainingLog

logger = logging.getLogger(__name__)

_BATCH = 24
_RATE, _WARM_UP, _WEIGHT_DECAY, _LARGEST_GRADIENT = 1e-3, 200, 1e-3, 1.0
_AVERAGED = 0.999  # Weights are averaged over about 1000 steps.
_SHARES = {"regions": 0.4, "generated": 0.3}  # Of the sessions; the others are on labelled structures, equally often of each name.
_LOG_EVERY = 50
_CLICKS, _CHECKED = 5, 48  # Clicks of a check, and crops of each kind.


@dataclass(frozen=True)
class CorrectionSettings:
    """What a run depends on.

    Attributes:
        out: Folder for crops, weights, state, log and curves; an interrupted run in it is resumed.
        labelled, unlabelled, generated: See `collect_crops`.
        minutes: Duration of the run, with what was done before an interruption.
        start: safetensors file of weights to start from, or None for new ones.
        seed: Of new weights and of the sessions.
        save_seconds, check_seconds: How often the state is saved, and crops of held-back patients are corrected.
    """

    out: Path
    labelled: tuple[Path, ...] = ()
    unlabelled: tuple[Path, ...] = ()
    generated: int = 400
    minutes: float = 60.0
    start: Path | None = None
    seed: int = 1
    save_seconds: float = 240.0
    check_seconds: float = 1200.0


class CorrectionTraining:
    """A run of the training.

    Raises:
        UserError: Settings are impossible, a folder cannot be read, or the weights to start from do not fit.
    """

    def __init__(self, settings: CorrectionSettings):
        if not 0 < settings.minutes < float("inf"):
            raise OptionError("minutes must be a number above 0.")
        self._settings = settings
        settings.out.mkdir(parents=True, exist_ok=True)
        self._crops, self._held_back = self._load_crops("crops.npz", False), self._load_crops("held_back_crops.npz", True)
        torch.manual_seed(settings.seed)
        self.network = CorrectionNetwork() if settings.start is None else load_corrections(settings.start)
        self.network.to(memory_format=torch.channels_last).train()
        self.averaged = deepcopy(self.network)
        self._optimizer = torch.optim.AdamW(self.network.parameters(), _RATE, weight_decay=_WEIGHT_DECAY)
        self.step, self._seconds = 0, 0.0
        if self._state_path.is_file():
            self._load_state()
        self._random = np.random.default_rng([settings.seed, self.step])
        self._log = TrainingLog(settings.out, self.step)

    def run(self) -> Path:
        """Train until the time is over, and return the file of the averaged weights."""
        sessions = [self._new_session() for _ in range(_BATCH)]
        saved = checked = time.monotonic()
        losses, minutes = [], self._settings.minutes
        with tqdm(total=round(60 * minutes), initial=round(self._seconds), unit="s", desc="Training") as bar:
            while self._seconds < 60 * minutes:
                began = time.monotonic()
                losses.append(self._train_step(sessions))
                now = time.monotonic()
                self._seconds += now - began
                bar.update(round(self._seconds) - bar.n)
                if self.step % _LOG_EVERY == 0:
                    self._log.append({"step": self.step, "seconds": round(self._seconds), "loss": float(np.mean(losses[-_LOG_EVERY:]))})
                if now - checked > self._settings.check_seconds:
                    self._log.append({"step": self.step, **self.check()})
                    checked = time.monotonic()
                if now - saved > self._settings.save_seconds:
                    self._save()
                    saved = now
        self._log.append({"step": self.step, "loss": float(np.mean(losses[-_LOG_EVERY:] or [np.nan])), **self.check()})
        self._log.plot()
        return self._save()

    @torch.inference_mode()
    def check(self) -> dict[str, float]:
        """Return the mean Dice after the first and the last of five clicks, by kind, on crops of held-back patients and new generated ones."""
        network, figures = self.averaged.eval(), {}
        for kind, crops in self._held_back.items():
            chosen = np.random.default_rng(0).permutation(len(crops.images))[:_CHECKED]
            dices = [_corrected_dices(network, *_crop(crops, n)) for n in chosen]
            figures |= {f"check {kind} {count}": float(np.mean([d[count - 1] for d in dices])) for count in (1, _CLICKS)}
        return figures

    def _train_step(self, sessions: list[Session]) -> float:
        """Train on the last click of each session, replace those that have ended, and return the loss."""
        inputs = torch.stack([s.network_input() for s in sessions]).to(memory_format=torch.channels_last)
        references = torch.from_numpy(np.stack([s.reference for s in sessions]).astype(np.float32))
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = _RATE * min(1.0, (self.step + 1) / _WARM_UP)
        logits = self.network(inputs)
        loss = correction_loss(logits, references)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
        self._optimizer.step()
        self.step += 1
        with torch.no_grad():
            for average, value in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                average.lerp_(value, 1 - min(_AVERAGED, self.step / (self.step + 10)))
        for n, answer in enumerate(logits.detach()):
            if not sessions[n].answer(answer, self._random):
                sessions[n] = self._new_session()
        return loss.item()

    def _new_session(self) -> Session:
        """Return a session on a crop whose kind is chosen by its share."""
        named = [k for k in self._crops if k not in _SHARES]
        weights = [_SHARES.get(k, (1 - sum(_SHARES.values())) / max(len(named), 1)) for k in self._crops]
        kind = list(self._crops)[self._random.choice(len(weights), p=np.array(weights) / sum(weights))]
        crops = self._crops[kind]
        return Session.begin(*_crop(crops, int(self._random.integers(len(crops.images)))), self._random)

    def _load_crops(self, name: str, held_back: bool) -> dict[str, Crops]:
        """Return crops from a file in the folder of the run; at first they are cut and written there."""
        path, s = self._settings.out / name, self._settings
        if not path.is_file():
            crops = collect_crops(s.labelled, s.unlabelled, -(-s.generated // 20) if held_back else s.generated, held_back)
            temporary = path.with_suffix(".tmp.npz")
            np.savez(temporary, **{f"{kind}/{part}": array for kind, c in crops.items() for part, array in c._asdict().items()})
            os.replace(temporary, path)
        with np.load(path) as arrays:
            kinds = dict.fromkeys(key.rpartition("/")[0] for key in arrays.files)
            return {kind: Crops(arrays[f"{kind}/images"], arrays[f"{kind}/masks"]) for kind in kinds}

    @property
    def _state_path(self) -> Path:
        return self._settings.out / "state.pt"

    def _load_state(self) -> None:
        state = torch.load(self._state_path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self._seconds = state["step"], state["seconds"]
        logger.info("Going on at step %d after %.0f minutes.", self.step, self._seconds / 60)

    def _save(self) -> Path:
        """Write the state and the averaged weights; each file appears complete or not at all. Return the file of the weights."""
        temporary, weights = self._state_path.with_suffix(".tmp"), self._settings.out / "corrections.safetensors"
        state = {"network": self.network.state_dict(), "averaged": self.averaged.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save({**state, "step": self.step, "seconds": self._seconds}, temporary)
        os.replace(temporary, self._state_path)
        temporary = weights.with_suffix(".tmp")
        tensors = {name: value.half().contiguous() for name, value in self.averaged.state_dict().items()}
        save_file(tensors, temporary, metadata={"steps": str(self.step)})
        os.replace(temporary, weights)
        return weights


def correction_loss(logits: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Return the loss of logits (B, h, w): 1 - Dice, and cross-entropy that counts more for small structures; `references` is float."""
    pixels = logits[0].numel()
    area = references.sum((1, 2))
    entropy = F.binary_cross_entropy_with_logits(logits, references, reduction="none").mean((1, 2))
    probability = logits.sigmoid()
    dice = (2 * (probability * references).sum((1, 2)) + 1) / (probability.sum((1, 2)) + area + 1)
    return (0.5 * entropy * pixels / (4 * area + 600).clamp_max(pixels) + 1 - dice).mean()


def _crop(crops: Crops, n: int) -> tuple[np.ndarray, np.ndarray]:
    return crops.images[n], np.unpackbits(crops.masks[n], axis=-1).astype(bool)


def _corrected_dices(network: CorrectionNetwork, image: np.ndarray, mask: np.ndarray) -> list[float]:
    """Return the Dice after each of `_CLICKS` clicks on a crop; after the mask has become right, that of the last one."""
    session, dices = Session.check(image, mask, _CLICKS), []
    while True:
        logits = network(session.network_input()[None])[0]
        answer, reference = (logits > 0).numpy(), session.reference
        dices.append(2 * float((answer & reference).sum()) / max(float(answer.sum() + reference.sum()), 1.0))
        if not session.answer(logits, None):
            return dices + dices[-1:] * (_CLICKS - len(dices))
