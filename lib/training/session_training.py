"""What the trainings of the small networks beside SAM 2 share.

Each step trains on one answer in each of some simulated sessions; the network's answers are what these sessions go on from. So the network
learns from its own errors, and nothing is computed twice.
"""

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import tqdm

from lib.common.errors import OptionError
from lib.model.side_networks import SideNetwork
from lib.training.training_log import TrainingLog

logger = logging.getLogger(__name__)

_RATE, _WARM_UP, _WEIGHT_DECAY, _LARGEST_GRADIENT = 1e-3, 200, 1e-3, 1.0
_AVERAGED = 0.999  # Weights are averaged over about 1000 steps.
_LOG_EVERY = 50
_EMPTY_WEIGHT = 0.3  # Of slices without the structure in the loss.


@dataclass(frozen=True)
class SessionSettings:
    """What a run depends on.

    Attributes:
        out: Folder for samples, weights, state, log and curves; an interrupted run in it is resumed.
        labelled, unlabelled, generated: What samples are cut from, see `lib.training.structure_sources.collect`.
        minutes: Duration of the run, with what was done before an interruption.
        start: safetensors file of weights to start from, or None for new ones.
        seed: Of new weights and of the sessions.
        save_seconds, check_seconds: How often the state is saved, and the network is checked on held-back patients.
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


class Session(Protocol):
    """What the network is asked for, once or several times."""

    def network_input(self) -> torch.Tensor:
        """Return the network's next input, float (CHANNELS, SIDE, SIDE) or (CHANNELS, d, h, w)."""

    def target(self) -> torch.Tensor:
        """Return the mask that the network should answer with, float (SIDE, SIDE) or (d, h, w)."""

    def answer(self, logits: torch.Tensor, random: np.random.Generator | None) -> bool:
        """Go on from the network's answer, logits as large as the target; return False where the session has ended."""


class SessionTraining(ABC):
    """A run of a training.

    Args:
        settings: Of the run.
        kind: Of the network. The weights are written to a file with the name of the one that ships.

    Raises:
        UserError: Settings are impossible, a folder cannot be read, or the weights to start from do not fit.
    """

    batch = 24  # Sessions at a time.

    def __init__(self, settings: SessionSettings, kind: SideNetwork):
        if not 0 < settings.minutes < float("inf"):
            raise OptionError("minutes must be a number above 0.")
        self._settings, self._weights_path = settings, settings.out / kind.path.name
        settings.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.network = (kind.new() if settings.start is None else kind.load(settings.start)).train()
        self.averaged = deepcopy(self.network)
        self._optimizer = torch.optim.AdamW(self.network.parameters(), _RATE, weight_decay=_WEIGHT_DECAY)
        self.step, self._seconds = 0, 0.0
        if self._state_path.is_file():
            self._load_state()
        self._random = np.random.default_rng([settings.seed, self.step])
        self._log = TrainingLog(settings.out, self.step)

    @abstractmethod
    def check(self) -> dict[str, float]:
        """Return figures of the averaged weights on held-back patients and new generated volumes."""

    @abstractmethod
    def new_session(self) -> Session:
        """Return a session on a sample that is drawn at random."""

    def run(self) -> Path:
        """Train until the time is over, and return the file of the averaged weights."""
        sessions = [self.new_session() for _ in range(self.batch)]
        saved = checked = time.monotonic()
        losses, minutes = [], self._settings.minutes
        with tqdm(total=round(60 * minutes), initial=round(self._seconds), unit="s", desc="Training") as bar:
            while self._seconds < 60 * minutes:
                began = time.monotonic()
                losses.append(self.train_step(sessions))
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

    def train_step(self, sessions: list[Session]) -> float:
        """Train on the next answer in each session, replace those that have ended, and return the loss."""
        inputs, targets = [s.network_input() for s in sessions], [s.target() for s in sessions]
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = _RATE * min(1.0, (self.step + 1) / _WARM_UP)
        logits = self.ask(inputs)
        loss = torch.stack([mask_loss(answer[None], target[None]) for answer, target in zip(logits, targets, strict=True)]).mean()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
        self._optimizer.step()
        self.step += 1
        with torch.no_grad():
            for average, value in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                average.lerp_(value, 1 - min(_AVERAGED, self.step / (self.step + 10)))
        for n, answer in enumerate(logits):
            if not sessions[n].answer(answer.detach(), self._random):
                sessions[n] = self.new_session()
        return loss.item()

    def ask(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the network's answers, logits as large as the targets."""
        return self.network(torch.stack(inputs).to(memory_format=torch.channels_last))

    def load_samples(self, name: str, collect: Callable[..., dict], held_back: bool) -> dict[str, dict[str, np.ndarray]]:
        """Return the samples of a file in the folder of the run; at first `collect` cuts them."""
        s = self._settings
        generated = -(-s.generated // 20) if held_back else s.generated
        return load_or_make(s.out / name, lambda: collect(s.labelled, s.unlabelled, generated, held_back))

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
        temporary, weights = self._state_path.with_suffix(".tmp"), self._weights_path
        state = {"network": self.network.state_dict(), "averaged": self.averaged.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save({**state, "step": self.step, "seconds": self._seconds}, temporary)
        os.replace(temporary, self._state_path)
        temporary = weights.with_suffix(".tmp")
        tensors = {name: value.half().contiguous() for name, value in self.averaged.state_dict().items()}
        save_file(tensors, temporary, metadata={"steps": str(self.step)})
        os.replace(temporary, weights)
        return weights


def mask_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss of logits (B, ...): 1 - Dice, and cross-entropy that counts more for small structures; `targets` is float.

    Where a target is empty, the cross-entropy alone counts, and less.
    """
    logits, targets = logits.flatten(1), targets.flatten(1)
    pixels, area = logits[0].numel(), targets.sum(1)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    entropy = entropy * pixels / (4 * area + 600).clamp_max(pixels)
    probability = logits.sigmoid()
    dice = (2 * (probability * targets).sum(1) + 1) / (probability.sum(1) + area + 1)
    is_there = (area > 0).float()
    return (0.5 * entropy * (is_there + _EMPTY_WEIGHT * (1 - is_there)) + (1 - dice) * is_there).mean()


def random_sample(counts: dict[str, int], shares: dict[str, float], random: np.random.Generator) -> tuple[str, int]:
    """Return the kind and the number of a sample.

    Args:
        counts: Number of samples of each kind.
        shares: Of the kinds that have one; the others, names of labels, have equal parts of the rest.
    """
    named = [k for k in counts if k not in shares]
    weights = np.array([shares.get(k, (1 - sum(shares.values())) / max(len(named), 1)) for k in counts])
    kind = list(counts)[random.choice(len(weights), p=weights / weights.sum())]
    return kind, int(random.integers(counts[kind]))


def load_or_make(path: Path, make: Callable[[], dict[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    """Return samples, arrays by kind and name, from a file of npz format; if it is missing, they are made and written there."""
    if not path.is_file():
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **{f"{kind}/{name}": array for kind, arrays in make().items() for name, array in arrays.items()})
        os.replace(temporary, path)
    samples: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            kind, _, name = key.rpartition("/")
            samples.setdefault(kind, {})[name] = arrays[key]
    return samples
