"""Simulate an annotator who corrects the mask of a crop click by click, for the training of the correction network."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from lib.imaging.masks import deepest_pixel, edge_distance
from lib.model.u_net import SIDE
from lib.prompts.simulated_annotator import corrective_click
from lib.propagation.click_correction import DISPLAYED_LIMIT, network_input

_WRONG_SHARE = 0.25  # Of the sessions that begin with a wrong mask, as from tracking.
_BOX_SHARE = 0.25  # Of the sessions that begin with a box, half of them with a wrong mask in it; the others begin with a click.
_RANDOM_SHARE = 0.25  # Of the clicks that lie anywhere in an error instead of where it is deepest.
_CLICKS = 3, 8  # The fewest clicks of a session, and one more than the most.


@dataclass
class Session:
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
    def begin(cls, image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> "Session":
        """Return a session on a crop, uint8 and bool (Y, X), that is turned, moved, scaled and made to look otherwise."""
        picture, reference = vary(image, mask, random)
        session = cls(picture, reference, torch.zeros(SIDE, SIDE), int(random.integers(*_CLICKS)))
        click, kind = None, random.random()
        if kind < _BOX_SHARE:
            session.box = loose_box(reference, random)
            if random.random() < 0.5:
                (top, left), (bottom, right) = session.box.astype(int) + 1
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
    def check(cls, image: np.ndarray, mask: np.ndarray, clicks: int) -> "Session":
        """Return a session on a crop as it is, which begins with a click where the structure is deepest."""
        picture, reference = vary(image, mask, None)
        return cls(picture, reference, torch.zeros(SIDE, SIDE), clicks, [(True, *deepest_pixel(reference))])

    def network_input(self) -> torch.Tensor:
        """Return the network's input, float (CHANNELS, SIDE, SIDE)."""
        inside, outside = ([(y, x) for is_inside, y, x in self.clicks if is_inside == side] for side in (True, False))
        return network_input(self.picture, inside, outside, self.displayed, self.box)

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


def vary(image: np.ndarray, mask: np.ndarray, random: np.random.Generator | None) -> tuple[torch.Tensor, np.ndarray]:
    """Return the middle of a crop, float and bool (SIDE, SIDE); with `random` turned, moved, scaled and made to look otherwise."""
    pair = torch.stack([torch.from_numpy(image.astype(np.float32)) / 255, torch.from_numpy(mask.astype(np.float32))])
    scale = SIDE / image.shape[0]
    if random is None:
        picture, reference = _transformed(pair, torch.tensor([[scale, 0, 0], [0, scale, 0]]))
        return picture, reference.numpy() > 0.5
    for _ in range(5):
        angle = random.uniform(-np.pi, np.pi) if random.random() < 0.6 else np.pi / 2 * random.integers(4)
        zoom, stretch = np.exp(random.uniform(-0.45, 0.4)) * scale, np.exp(random.uniform(-0.15, 0.15)) * random.choice([-1, 1])
        cosine, sine, (x, y) = np.cos(angle) * zoom, np.sin(angle) * zoom, random.uniform(-0.22, 0.22, 2) * scale
        picture, reference = _transformed(pair, torch.tensor([[cosine * stretch, -sine, x], [sine * stretch, cosine, y]]))
        if (reference > 0.5).sum() >= 16:
            break
    else:
        return vary(image, mask, None)
    return _look_otherwise(picture, random), reference.numpy() > 0.5


def _transformed(pair: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(matrix[None].float(), (1, 2, SIDE, SIDE), align_corners=False)
    return F.grid_sample(pair[None], grid, padding_mode="border", align_corners=False)[0]


def _look_otherwise(picture: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Return a picture in [0, 1] with another window, gamma, resolution, bias field or noise, or inverted."""
    if random.random() < 0.3:
        picture = 1 - picture
    low, high = np.quantile(picture.numpy()[::4, ::4], [random.uniform(0, 0.05), random.uniform(0.93, 1)])
    picture = ((picture - float(low)) / max(float(high - low), 0.05)).clamp(0, 1) ** float(np.exp(random.uniform(-0.6, 0.6)))
    if random.random() < 0.35:
        picture = torch.from_numpy(ndimage.gaussian_filter(picture.numpy(), random.uniform(0.3, 1.3)))
    if random.random() < 0.4:
        coarse = torch.from_numpy(random.normal(0, 1, (1, 1, 3, 3)).astype(np.float32))
        picture = picture * torch.exp(0.25 * random.random() * F.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=True)[0, 0])
    if random.random() < 0.6:
        deviation = random.uniform(0.005, 0.1) * random.random()
        picture = picture + torch.from_numpy(random.normal(0, deviation, (SIDE, SIDE)).astype(np.float32))
    if random.random() < 0.2:
        picture = F.interpolate(F.avg_pool2d(picture[None, None], 2), (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    return picture.float()


def corrupt(reference: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a mask, bool (Y, X), with one or two errors as tracking makes them: moved, too small, too large, cut off, leaking or ragged."""
    mask, length = reference.copy(), max(3, int(reference.sum() ** 0.5))
    inside = np.argwhere(reference)
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    for _ in range(random.integers(1, 3)):
        kind = random.integers(6)
        y, x = inside[random.integers(len(inside))]
        if kind == 0:
            mask = np.roll(mask, random.integers(-max(1, length // 4), max(1, length // 4) + 1, 2), (0, 1))
        elif kind == 1:
            mask = ndimage.binary_erosion(mask, iterations=int(random.integers(1, max(2, length // 8))))
        elif kind == 2:
            mask = ndimage.binary_dilation(mask, iterations=int(random.integers(1, max(2, length // 6))))
        elif kind == 3:
            angle = random.uniform(0, 2 * np.pi)
            mask &= (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle) < length * random.uniform(0, 0.3)
        elif kind == 4:
            radius = length * random.uniform(0.15, 0.6)
            ellipse = ((rows - y) / radius) ** 2 + ((columns - x) / (radius * random.uniform(0.4, 1.5))) ** 2 < 1
            mask = mask | ellipse if random.random() < 0.6 else mask & ~ellipse
        else:
            waves = ndimage.gaussian_filter(random.normal(size=mask.shape), random.uniform(2, 6))
            signed = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
            mask = signed + waves / waves.std() * length * 0.12 > 0
    return mask
