"""Active learning strategies of MONAI Label: which volume, and which of its slices, an annotator should work on next.

All strategies pass over volumes that cannot be read, that are marked as bad, or that the client has skipped. What the client has begun
comes first, then volumes that nobody works on, then those in somebody else's work.
"""

import logging
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from monailabel.interfaces.tasks.strategy import Strategy

from lib.common.errors import UserError, VolumeError
from lib.imaging.frames import Frames
from lib.imaging.masks import deepest_pixel
from lib.imaging.readers import read_mask
from lib.imaging.volume import Volume
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.active_learning.lending import Lending
from lib.serving.active_learning.readable_volumes import ReadableVolumes
from lib.serving.active_learning.situation import AnnotationRequest, Situation, find_situation
from lib.serving.datastore.labels import label_path

logger = logging.getLogger(__name__)

# A volume whose expected Dice is this high, or that has had this many slices annotated, comes last.
TARGET_DICE, MAX_ROUNDS = 0.9, 8
MAX_NAMED = 3  # Volumes that could not be read and are named in an answer's reason; all are in `passed_over`.


class Offer(NamedTuple):
    """A volume that a strategy may propose.

    Attributes:
        image: Its id.
        request: What to do there, or None if nothing is known yet.
        remark: A sentence that the answer's reason begins with, or "".
        lend: Whether the volume must first be lent to the client, because nobody has begun it.
        is_complete: Whether every slice of it has been annotated.
    """

    image: str
    request: AnnotationRequest | None = None
    remark: str = ""
    lend: bool = False
    is_complete: bool = False


class VolumeStrategy(Strategy):
    """Base of the strategies.

    Args:
        records: The volumes being annotated.
        lending: Who has which volume.
        volumes: Opens volumes and knows which of them cannot be read.
    """

    DESCRIPTION: str  # Displayed to clients.

    def __init__(self, records: AnnotationRecords, lending: Lending, volumes: ReadableVolumes):
        super().__init__(self.DESCRIPTION)
        self._records, self._lending, self._volumes = records, lending, volumes

    def info(self) -> dict:
        return {**super().info(), "config": {"target_dice": TARGET_DICE, "max_rounds": MAX_ROUNDS}}

    def __call__(self, request: dict, datastore) -> dict | None:
        """Return {id, slice, axis, expected_dice, volume_dice, reason, prompt, point, passed_over, ...}, or None if there is nothing to do.

        Raises:
            UserError: There are volumes to annotate, but the client has skipped them, they are marked as bad, or none can be read.
            requests.RequestException: The DICOM store does not answer.
        """
        client = str(request.get("client_id") or "")
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        state = self._lending.state()
        skipped = [i for i in images if client in state["skipped"].get(i, ())]
        put_aside = {*skipped, *(i for i in images if i in state["rejected"])}
        records = {image: self._records.for_image(image) for image in images if image not in put_aside}
        borrowers = {image: loan["client"] for image, loan in state["loans"].items()}
        situation = find_situation(records, borrowers, client, request.get("image"), self._lending.is_recent)
        target_dice, max_rounds = (_number(request, k, d) for k, d in (("target_dice", TARGET_DICE), ("max_rounds", MAX_ROUNDS)))

        def is_unfinished(r: AnnotationRequest) -> bool:
            return r.volume_dice < target_dice and r.rounds < max_rounds

        passed_over: dict[str, str] = {}
        for offer in self._offers(situation, is_unfinished):
            if offer.image in passed_over or (offer.lend and not self._lending.lend(offer.image, client)):
                continue
            try:
                volume = self._volumes.open(offer.image, datastore)
            except VolumeError as e:
                passed_over[offer.image] = str(e)
                self._lending.give_back(offer.image, client)
                logger.warning("Next Sample passes over %s: %s", offer.image, e)
                continue
            if offer.request:
                answer = offer.request.to_answer()
            elif offer.is_complete:
                answer = {"id": offer.image, "reason": "Every slice of it has been annotated."}
            else:
                answer = first_proposal(offer.image, volume, datastore)
            return _with_remarks(answer, offer.remark, passed_over)
        if passed_over:
            raise UserError(f"No volume is left that can be read: {name_volumes(passed_over)}.")
        if put_aside:
            bad = len(put_aside) - len(skipped)
            raise UserError(
                f"Nothing is left for you: of the volumes without a final label, you have skipped {len(skipped)}, and {bad} "
                f"more {'is' if bad == 1 else 'are'} marked as bad. Take one back on the page /sam2/."
            )
        return None

    @abstractmethod
    def _offers(self, situation: Situation, is_unfinished: Callable[[AnnotationRequest], bool]) -> Iterator[Offer]:
        """Yield the volumes in the order in which they are to be proposed."""


class WorstSlice(VolumeStrategy):
    """Propose the worst slice of the volume this client works on until that volume is good, then a new volume, then those of others."""

    DESCRIPTION = "Slice expected to be worst, volume by volume"

    def _offers(self, situation, is_unfinished):
        own = situation.own
        last = max([r for r in own if r.image == situation.displayed] or own, key=lambda r: r.time, default=None)
        unfinished = sorted(filter(is_unfinished, own), key=lambda r: (r != last, r.image != last.image, r.volume_dice))
        yield from (Offer(r.image, r) for r in unfinished)
        yield from (Offer(image, lend=True) for image in situation.free)
        yield from _last_offers(situation, is_unfinished)


class WorstVolume(VolumeStrategy):
    """Propose the volume expected to be worst of those that this client has begun, then a new one, then the worst one of others."""

    DESCRIPTION = "Volume expected to be worst, at its worst slice"

    def _offers(self, situation, is_unfinished):
        unfinished = sorted(filter(is_unfinished, situation.own), key=lambda r: r.volume_dice)
        yield from (Offer(r.image, r) for r in unfinished)
        yield from (Offer(image, lend=True) for image in situation.free)
        yield from _last_offers(situation, is_unfinished)


class FirstVolume(VolumeStrategy):
    """Propose the first volume, by name, that nobody else works on."""

    DESCRIPTION = "First volume by name"

    def _offers(self, situation, is_unfinished):
        yield from sorted(_own_and_free(situation))
        yield from _last_offers(situation, is_unfinished)


class AnyVolume(VolumeStrategy):
    """Propose a random volume that nobody else works on."""

    DESCRIPTION = "Random volume"

    def _offers(self, situation, is_unfinished):
        offers = list(_own_and_free(situation))
        yield from random.sample(offers, len(offers))
        yield from _last_offers(situation, is_unfinished)


def _own_and_free(situation: Situation) -> Iterator[Offer]:
    """Yield each volume that nobody else works on, at its worst slice if the client has begun it."""
    worst: dict[str, AnnotationRequest] = {}
    for r in sorted(situation.own, key=lambda r: r.volume_dice):
        worst.setdefault(r.image, r)
    yield from (Offer(image, r) for image, r in worst.items())
    yield from (Offer(image, lend=True) for image in situation.free)


def _last_offers(situation: Situation, is_unfinished: Callable[[AnnotationRequest], bool]) -> Iterator[Offer]:
    """Yield the volumes to propose when nothing is left that the client has begun or that is free."""
    yield from (Offer(r.image, r, "Another annotator has begun this volume.") for r in situation.others if is_unfinished(r))
    remark = "All volumes are at their target or have had their rounds; this one is least sure."
    yield from (Offer(r.image, r, remark) for r in sorted([*situation.own, *situation.others], key=lambda r: r.volume_dice))
    yield from (Offer(image, is_complete=True) for image in situation.complete)
    yield from (Offer(image, remark="This volume is lent to another annotator, and no other is left.") for image in situation.lent)


def _with_remarks(answer: dict, remark: str, passed_over: dict[str, str]) -> dict:
    """Return an answer with what is to be said of the choice in its reason, and with the volumes that could not be read."""
    report = f"Passed over, because they cannot be read: {name_volumes(passed_over)}." if passed_over else ""
    sentences = (remark, answer["reason"], report)
    volumes = [{"id": image, "reason": reason} for image, reason in passed_over.items()]
    return {**answer, "reason": " ".join(filter(None, sentences)), **({"passed_over": volumes} if volumes else {})}


def name_volumes(passed_over: dict[str, str]) -> str:
    """Return the names of volumes that could not be read, with the reasons.

    >>> name_volumes({"a": "The file is damaged."}), name_volumes(dict.fromkeys("abcde", "gone"))
    ('a (The file is damaged)', 'a (gone), b (gone), c (gone) and 2 more')
    """
    texts = [f"{image} ({reason.rstrip('.')})" for image, reason in list(passed_over.items())[:MAX_NAMED]]
    more = f" and {len(passed_over) - MAX_NAMED} more" if len(passed_over) > MAX_NAMED else ""
    return ", ".join(texts) + more


def first_proposal(image: str, volume: Volume, datastore) -> dict:
    """Return where to start in a volume that nobody has worked on, with the fields of an answer of *Next Sample*.

    This is the largest slice of the largest structure in a saved label, for example from batch inference, or else the middle slice.
    """
    frames = Frames.of(volume)
    answer = {"id": image, "axis": frames.axis, "slices": len(frames), "rounds": 0, "prompt": "click", "point": None, "label": ""}
    labels = _saved_labels(image, volume, frames, datastore)
    if labels is None:
        return {**answer, "slice": len(frames) // 2, "reason": "Nothing is annotated yet: start where the structure is largest."}
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    structure = labels == values[counts.argmax()]
    t = int(structure.sum((1, 2)).argmax())
    point = frames.to_voxel(t, *deepest_pixel(structure[t]))
    return {**answer, "slice": t, "point": list(point), "reason": "Nothing is annotated yet: the largest slice of the label that is there."}


def _saved_labels(image: str, volume: Volume, frames: Frames, datastore) -> np.ndarray | None:
    """Return the first saved label map of an image that is not empty, (T, Y, X), or None; those that cannot be read are logged."""
    for tag in datastore.get_labels_by_image_id(image):
        try:
            path = label_path(datastore, image, tag)
            labels = None if path is None else frames.from_volume(read_mask(path, volume))
        except (UserError, OSError) as e:
            logger.warning("The label %s of %s is not used: %s", tag, image, e)
            continue
        if labels is not None and labels.any():
            return labels
    return None


def _number(request: dict, name: str, default: float) -> float:
    try:
        return float(request.get(name, default))
    except (TypeError, ValueError, OverflowError):
        return float(default)
