"""Active learning: which volume, and which of its slices, an annotator should look at next."""

import logging
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from monailabel.interfaces.tasks.strategy import Strategy

from lib.common.errors import UserError
from lib.imaging.frames import Frames
from lib.imaging.masks import deepest_pixel
from lib.imaging.readers import read_mask, read_volume
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.datastore.labels import label_path

logger = logging.getLogger(__name__)

TARGET, MOST_ROUNDS = 0.9, 8


@dataclass(frozen=True)
class AnnotationRequest:
    """A structure of a volume that could be better.

    Attributes:
        image, label: which. volume_dice: expected. slice: to annotate next. expected_dice: of that slice.
        rounds: slices annotated so far.
    """

    image: str
    label: str
    volume_dice: float
    rounds: int
    time: float
    client: str
    axis: int
    slices: int
    slice: int
    expected_dice: float
    prompt: str
    point: list | None
    reason: str

    def answer(self) -> dict:
        """As *Next Sample* gives it."""
        return {"id": self.image, **{k: v for k, v in self.__dict__.items() if k not in ("image", "time", "client")}}


def needs_of(image: str, records: dict[str, dict]) -> list[AnnotationRequest]:
    """Of the records of one image (see `lib.serving.active_learning.annotation_records`)."""
    return [
        AnnotationRequest(
            image, r["label"], r["volume_dice"], len(r["annotated"]), r["time"], r["client"], r["axis"], r["slices"],
            p["slice"], p["expected_dice"], p["prompt"], p["point"], p["reason"],
        )
        for r in records.values() if (p := r.get("proposal"))
    ]  # fmt: skip


class _BySlices(Strategy):
    """What the strategies below share.

    Args:
        rounds: what is known of volumes in work.
    """

    def __init__(self, description: str, rounds: AnnotationRecords):
        super().__init__(description)
        self._rounds = rounds

    def info(self) -> dict:
        return {**super().info(), "config": {"target_dice": TARGET, "max_rounds": MOST_ROUNDS}}

    def __call__(self, request: dict, datastore) -> dict | None:
        """{id, slice, axis, expected_dice, volume_dice, reason, prompt, point, ...}, or None when all images have final labels."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        target, most = (_number(request, k, d) for k, d in (("target_dice", TARGET), ("max_rounds", MOST_ROUNDS)))
        known = [n for image in images for n in needs_of(image, self._rounds.of(image))]
        todo = [n for n in known if n.volume_dice < target and n.rounds < most]
        here = [n for n in known if n.image == request.get("image")]
        need = self._choose(here or [n for n in known if n.client == str(request.get("client_id") or "")], todo)
        if need is not None:
            return need.answer()
        fresh = [i for i in images if not self._rounds.of(i)]
        if fresh:
            return first_proposal(fresh[0], datastore)
        if not known:
            return {"id": images[0], "reason": "Every slice of it has been annotated."}
        least = min(known, key=lambda n: n.volume_dice)
        return {**least.answer(), "reason": f"All volumes are at their target or have had their rounds; this one is least sure. {least.reason}"}

    @abstractmethod
    def _choose(self, mine: list[AnnotationRequest], todo: list[AnnotationRequest]) -> AnnotationRequest | None:
        """One of what is to do.

        Args:
            mine: what this client has worked on; if it says which "image" it shows (OHIF has no client's id), what is there.
        """


class WorstSlice(_BySlices):
    """The worst slice of the volume that this client is working on, until that is good; then of the worst volume; then a new one."""

    def __init__(self, rounds: AnnotationRecords):
        super().__init__("Slice expected to be worst, volume by volume", rounds)

    def _choose(self, mine, todo):
        last = max(mine, key=lambda n: n.time, default=None)
        if last in todo:
            return last
        here = [n for n in todo if last and n.image == last.image]
        return min(here or todo, key=lambda n: n.volume_dice, default=None)


class WorstVolume(_BySlices):
    """The volume expected to be worst of all in work, whoever works on it; then a new one."""

    def __init__(self, rounds: AnnotationRecords):
        super().__init__("Volume expected to be worst, at its worst slice", rounds)

    def _choose(self, mine, todo):
        return min(todo, key=lambda n: n.volume_dice, default=None)


def first_proposal(image: str, datastore) -> dict:
    """Where to start in a volume that nobody has worked on: the largest slice of the largest structure of a label that is there
    (of batch inference, say), else the middle."""
    try:
        volume = read_volume(datastore.get_image_uri(image))
        frames = Frames.of(volume)
        found = _labelled(image, datastore, volume)
    except (UserError, OSError) as e:
        logger.warning("Proposed unread: %s", e)
        return {"id": image, "reason": "Nothing is annotated yet."}
    answer = {"id": image, "axis": frames.axis, "slices": len(frames), "rounds": 0, "prompt": "click", "point": None, "label": ""}
    if found is None:
        return {**answer, "slice": len(frames) // 2, "reason": "Nothing is annotated yet: start where the structure is largest."}
    labels = frames.from_volume(found)
    reference = labels == _largest(labels)
    t = int(reference.sum((1, 2)).argmax())
    point = frames.to_voxel(t, *deepest_pixel(reference[t]))
    return {**answer, "slice": t, "point": list(point), "reason": "Nothing is annotated yet: the largest slice of the label that is there."}


def _largest(labels: np.ndarray) -> int:
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    return int(values[counts.argmax()])


def _labelled(image: str, datastore, volume) -> np.ndarray | None:
    """The label map (I, J, K) of any tag, if there is one that is not empty."""
    for tag in datastore.get_labels_by_image_id(image):
        path = label_path(datastore, image, tag)
        if path is None:
            continue
        labels = read_mask(path, volume)
        if labels.any():
            return labels
    return None


def _number(request: dict, name: str, default: float) -> float:
    try:
        return float(request.get(name, default))
    except (TypeError, ValueError, OverflowError):
        return float(default)
