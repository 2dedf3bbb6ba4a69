"""Simulate an annotator who corrects the mask of a crop click by click, for the training of the correction network."""

from dataclasses import dataclass, field

import numpy as np
import torch

from lib.imaging.masks import deepest_pixel, edge_distance
from lib.model.u_net import SIDE
from lib.prompts.simulated_annotator import corrective_click
from lib.propagation.click_correction import DISPLAYED_LIMIT, network_input
from lib.training.variation import corrupt, vary

_WRONG_SHARE = 0.25  # Of the sessions that begin with a wrong mask, as from tracking.
_BOX_SHARE = 0.25  # Of the sessions that begin with a box, half of them with a wrong mask in it; the others begin with a click.
_RANDOM_SHARE = 0.25  # Of the clicks that lie anywhere in an error instead of where it is deepest.
_CLICKS = 3, 8  # The fewest clicks of a session, and one more than the most.


@dataclass
class CorrectionSession:
    """The clicks on one crop so far.

    Attributes:
        picture: Intensities, float (SIDE, SIDE).
        reference: bool (SIDE, SIDE).
        displayed: Logits (SIDE, SIDE) of the mask that the last click corrects; all 0 before the first one.
        clicks: (inside, y, x) of each click.
        remaining: Number of clicks that may follow.
        box: Low and high edges of the box, float (2, 2), or None.
    """

    picture: torch.Tensor
    reference: np.ndarray
    displayed: torch.Tensor
    remaining: int
    clicks: list[tuple[bool, int, int]] = field(default_factory=list)
    box: np.ndarray | None = None

    @classmethod
    def begin(cls, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> "CorrectionSession":
        """Return a session on a crop, uint8 and bool (Y, X), that is turned, moved, scaled and made to look otherwise."""
        picture, reference = _vary(image, mask, random)
        session = cls(picture, reference, torch.zeros(SIDE, SIDE), int(random.integers(*_CLICKS)))
        click, kind = None, random.random()
        if kind < _BOX_SHARE:
            session.box = loose_box(reference, random)
            if random.random() < 0.5:
                (top, left), (bottom, right) = np.ceil(session.box).astype(int)
                wrong = np.zeros_like(reference)
                wrong[top:bottom, left:right] = corrupt(reference, random)[top:bottom, left:right]
                session.displayed = _as_logits(wrong)
            return session
        if kind < _BOX_SHARE + _WRONG_SHARE:
            wrong = corrupt(reference, random)
            session.displayed = _as_logits(wrong)
            click = next_click(wrong, reference, random)
        if click is None:
            inside = np.argwhere(reference)
            y, x = inside[random.integers(len(inside))] if random.random() < 0.4 else deepest_pixel(reference)
            click = True, int(y), int(x)
        session.clicks.append(click)
        return session

    @classmethod
    def check(cls, image: np.ndarray, mask: np.ndarray, clicks: int) -> "CorrectionSession":
        """Return a session on a crop as it is, which begins with a click where the structure is deepest."""
        picture, reference = _vary(image, mask, None)
        return cls(picture, reference, torch.zeros(SIDE, SIDE), clicks, [(True, *deepest_pixel(reference))])

    def network_input(self) -> torch.Tensor:
        """Return the network's input, float (CHANNELS, SIDE, SIDE)."""
        inside, outside = ([(y, x) for is_inside, y, x in self.clicks if is_inside == side] for side in (True, False))
        return network_input(self.picture, inside, outside, self.displayed, self.box)

    def target(self) -> torch.Tensor:
        """Return what the network should answer, float (SIDE, SIDE)."""
        return torch.from_numpy(self.reference.astype(np.float32))

    def answer(self, logits: torch.Tensor, random: np.random.Generator | None) -> bool:
        """Take the network's answer (SIDE, SIDE) as the displayed mask and click on its worst error; return False where none follows."""
        self.remaining -= 1
        click = next_click((logits > 0).numpy(), self.reference, random) if self.remaining > 0 else None
        if click is None:
            return False
        self.displayed = logits.clamp(-DISPLAYED_LIMIT, DISPLAYED_LIMIT)
        self.clicks.append(click)
        return True


def loose_box(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the low and the high edges, float (2, 2), of the box round a mask, bool (Y, X); half of the boxes are a pixel off at their sides."""
    places = np.argwhere(mask)
    corners = np.stack([places.min(0), places.max(0)])
    if random.random() < 0.5:
        corners = np.clip(corners + random.integers(-1, 2, (2, 2)), 0, np.array(mask.shape) - 1)
    return np.sort(corners, 0) + np.array([[-0.5], [0.5]])


def _vary(image: np.ndarray, mask: np.ndarray, random: np.random.Generator | None) -> tuple[torch.Tensor, np.ndarray]:
    """Return a crop, uint8 and bool (Y, X), as float and bool (SIDE, SIDE); see `vary`."""
    pictures, masks = vary(image[None], mask[None], SIDE, random)
    return pictures[0], masks[0]


def _as_logits(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(mask, 3.0, -3.0).astype(np.float32))


def next_click(mask: np.ndarray, reference: np.ndarray, random: np.random.Generator | None = None) -> tuple[bool, int, int] | None:
    """Return a click (inside, y, x) on an error of a mask, bool (Y, X): where it is deepest, or with `random` sometimes anywhere in one.

    None where no error is worth a click, see `corrective_click`.
    """
    click = corrective_click(mask, reference)
    if click is None or random is None or random.random() >= _RANDOM_SHARE:
        return click
    missed, extra = reference & ~mask, mask & ~reference
    inside = bool(random.random() * (missed.sum() + extra.sum()) < missed.sum())
    depth = edge_distance(missed if inside else extra)
    y, x = random.choice(np.argwhere((depth > 0) & (depth > 0.9 * min(depth.max(), 1.5))))
    return inside, int(y), int(x)
