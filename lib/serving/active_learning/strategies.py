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
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.datastore.labels import label_path

logger = logging.getLogger(__name__)

# A volume whose expected Dice is this high, or that has had this many slices annotated, comes last.
TARGET_DICE, MAX_ROUNDS = 0.9, 8


@dataclass(frozen=True)
class AnnotationRequest:
    """A structure of a volume that could be improved, and what to do for it.

    Attributes:
        image, label: Id of the image and name of the structure.
        volume_dice: Expected Dice of the structure in the whole volume.
        rounds: Number of slices annotated so far.
        time, client: When the structure was last worked on (seconds since 1970), and by which client.
        axis, slices: Slicing axis, and number of slices along it.
        slice, expected_dice: The slice to annotate next, and its expected Dice.
        prompt, point, reason: As in `lib.quality.next_slice.Proposal`.
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
    """Base of the strategies that propose a slice from the records of the volumes being annotated."""

    DESCRIPTION: str  # Displayed to clients.

    def __init__(self, records: AnnotationRecords):
        super().__init__(self.DESCRIPTION)
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
        if choice := self._choose(in_displayed_image or of_client, unfinished):
            return choice.to_answer()
        untouched = next((i for i in images if not self._records.for_image(i)), None)
        if untouched is not None:
            return first_proposal(untouched, datastore)
        if not candidates:
            return {"id": images[0], "reason": "Every slice of it has been annotated."}
        worst = min(candidates, key=lambda c: c.volume_dice).to_answer()
        return {**worst, "reason": f"All volumes are at their target or have had their rounds; this one is least sure. {worst['reason']}"}

    @abstractmethod
    def _choose(self, of_client: list[AnnotationRequest], unfinished: list[AnnotationRequest]) -> AnnotationRequest | None:
        """Return one of the unfinished requests (below the target, with rounds left), or None to begin a new volume.

        `of_client` is what this client has worked on. If it names the "image" that it displays, as OHIF does for lack of a client id,
        these are the requests of that image.
        """


class WorstSlice(_SliceStrategy):
    """Propose the worst slice of the volume this client works on until that volume is good, then the worst volume, then a new one."""

    DESCRIPTION = "Slice expected to be worst, volume by volume"

    def _choose(self, of_client, unfinished):
        last = max(of_client, key=lambda c: c.time, default=None)
        if last in unfinished:
            return last
        same_image = [c for c in unfinished if last and c.image == last.image]
        return min(same_image or unfinished, key=lambda c: c.volume_dice, default=None)


class WorstVolume(_SliceStrategy):
    """Propose the volume expected to be worst, whoever works on it, then a new one."""

    DESCRIPTION = "Volume expected to be worst, at its worst slice"

    def _choose(self, of_client, unfinished):
        return min(unfinished, key=lambda c: c.volume_dice, default=None)


def first_proposal(image: str, datastore) -> dict:
    """Return where to start in a volume that nobody has worked on, with the fields of an answer of *Next Sample*.

    This is the largest slice of the largest structure in a saved label, for example from batch inference, or else the middle slice.
    """
    try:
        volume = read_volume(datastore.get_image_uri(image))
        frames = Frames.of(volume)
        paths = (label_path(datastore, image, tag) for tag in datastore.get_labels_by_image_id(image))
        label_maps = (frames.from_volume(read_mask(path, volume)) for path in paths if path is not None)
        labels = next((label_map for label_map in label_maps if label_map.any()), None)
    except (UserError, OSError) as e:
        logger.warning("%s is proposed although it cannot be read: %s", image, e)
        return {"id": image, "reason": "Nothing is annotated yet."}
    answer = {"id": image, "axis": frames.axis, "slices": len(frames), "rounds": 0, "prompt": "click", "point": None, "label": ""}
    if labels is None:
        return {**answer, "slice": len(frames) // 2, "reason": "Nothing is annotated yet: start where the structure is largest."}
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    structure = labels == values[counts.argmax()]
    t = int(structure.sum((1, 2)).argmax())
    point = frames.to_voxel(t, *deepest_pixel(structure[t]))
    return {**answer, "slice": t, "point": list(point), "reason": "Nothing is annotated yet: the largest slice of the label that is there."}


def _number(request: dict, name: str, default: float) -> float:
    try:
        return float(request.get(name, default))
    except (TypeError, ValueError, OverflowError):
        return float(default)
