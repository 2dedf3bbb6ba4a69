"""Active learning strategies of MONAI Label: which volume, and which of its slices, an annotator should work on next."""

import logging
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from monailabel.interfaces.tasks.strategy import Strategy

from lib.common.errors import UserError
from lib.imaging.frames import Frames
from lib.imaging.masks import deepest_pixel
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.datastore.labels import label_path

logger = logging.getLogger(__name__)

# A volume whose expected Dice is this high, or that has had this many slices annotated, comes last.
TARGET_DICE, MAX_ROUNDS = 0.9, 8


@dataclass(frozen=True)
class AnnotationRequest:
    """A structure of a volume that could be improved, and what to do for it.

    Attributes:
        image, label: ids of the image and name of the structure.
        volume_dice: expected Dice of the structure in the whole volume.
        rounds: number of slices annotated so far.
        time, client: when the structure was last worked on (seconds since 1970), and by which client.
        axis, slices: slicing axis, and number of slices along it.
        slice, expected_dice: the slice to annotate next, and its expected Dice.
        prompt, point, reason: as in `lib.quality.next_slice.Proposal`.
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

    def to_answer(self) -> dict:
        """Return the answer of *Next Sample*."""
        return {"id": self.image, **{k: v for k, v in self.__dict__.items() if k not in ("image", "time", "client")}}


def annotation_requests(image: str, records: dict[str, dict]) -> list[AnnotationRequest]:
    """Return the requests that follow from the records of one image, see `lib.serving.active_learning.annotation_records`."""
    return [
        AnnotationRequest(
            image, r["label"], r["volume_dice"], len(r["annotated"]), r["time"], r["client"], r["axis"], r["slices"],
            p["slice"], p["expected_dice"], p["prompt"], p["point"], p["reason"],
        )
        for r in records.values() if (p := r.get("proposal"))
    ]  # fmt: skip


class _SliceStrategy(Strategy):
    """Base of the strategies that propose a slice.

    Args:
        description: shown to clients.
        records: the records of the volumes being annotated.
    """

    def __init__(self, description: str, records: AnnotationRecords):
        super().__init__(description)
        self._records = records

    def info(self) -> dict:
        return {**super().info(), "config": {"target_dice": TARGET_DICE, "max_rounds": MAX_ROUNDS}}

    def __call__(self, request: dict, datastore) -> dict | None:
        """Return {id, slice, axis, expected_dice, volume_dice, reason, prompt, point, ...}, or None when all images have final labels."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        target_dice, max_rounds = (_number(request, k, d) for k, d in (("target_dice", TARGET_DICE), ("max_rounds", MAX_ROUNDS)))
        candidates = [c for image in images for c in annotation_requests(image, self._records.for_image(image))]
        unfinished = [c for c in candidates if c.volume_dice < target_dice and c.rounds < max_rounds]
        in_displayed_image = [c for c in candidates if c.image == request.get("image")]
        of_client = [c for c in candidates if c.client == str(request.get("client_id") or "")]
        choice = self._choose(in_displayed_image or of_client, unfinished)
        if choice is not None:
            return choice.to_answer()
        untouched = [i for i in images if not self._records.for_image(i)]
        if untouched:
            return first_proposal(untouched[0], datastore)
        if not candidates:
            return {"id": images[0], "reason": "Every slice of it has been annotated."}
        worst = min(candidates, key=lambda c: c.volume_dice)
        return {**worst.to_answer(), "reason": f"All volumes are at their target or have had their rounds; this one is least sure. {worst.reason}"}

    @abstractmethod
    def _choose(self, of_client: list[AnnotationRequest], unfinished: list[AnnotationRequest]) -> AnnotationRequest | None:
        """Return one of the unfinished requests, or None to begin a new volume.

        Args:
            of_client: what this client has worked on. If it names the "image" that it displays, as OHIF does for lack of a client id,
                these are the requests of that image.
            unfinished: all requests below the target that have rounds left.
        """


class WorstSlice(_SliceStrategy):
    """Propose the worst slice of the volume this client works on until that volume is good, then the worst volume, then a new one."""

    def __init__(self, records: AnnotationRecords):
        super().__init__("Slice expected to be worst, volume by volume", records)

    def _choose(self, of_client, unfinished):
        last = max(of_client, key=lambda c: c.time, default=None)
        if last in unfinished:
            return last
        same_image = [c for c in unfinished if last and c.image == last.image]
        return min(same_image or unfinished, key=lambda c: c.volume_dice, default=None)


class WorstVolume(_SliceStrategy):
    """Propose the volume expected to be worst, whoever works on it, then a new one."""

    def __init__(self, records: AnnotationRecords):
        super().__init__("Volume expected to be worst, at its worst slice", records)

    def _choose(self, of_client, unfinished):
        return min(unfinished, key=lambda c: c.volume_dice, default=None)


def first_proposal(image: str, datastore) -> dict:
    """Return where to start in a volume that nobody has worked on.

    That is the largest slice of the largest structure in a saved label, for example from batch inference, or else the middle slice.
    """
    try:
        volume = read_volume(datastore.get_image_uri(image))
        frames = Frames.of(volume)
        saved = _saved_label_map(image, datastore, volume)
    except (UserError, OSError) as e:
        logger.warning("Proposed unread: %s", e)
        return {"id": image, "reason": "Nothing is annotated yet."}
    answer = {"id": image, "axis": frames.axis, "slices": len(frames), "rounds": 0, "prompt": "click", "point": None, "label": ""}
    if saved is None:
        return {**answer, "slice": len(frames) // 2, "reason": "Nothing is annotated yet: start where the structure is largest."}
    labels = frames.from_volume(saved)
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    structure = labels == values[counts.argmax()]
    t = int(structure.sum((1, 2)).argmax())
    point = frames.to_voxel(t, *deepest_pixel(structure[t]))
    return {**answer, "slice": t, "point": list(point), "reason": "Nothing is annotated yet: the largest slice of the label that is there."}


def _saved_label_map(image: str, datastore, volume: Volume) -> np.ndarray | None:
    """Return the first saved label map (I, J, K) of an image that is not empty, or None."""
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
