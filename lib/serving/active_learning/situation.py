"""What there is to do in a datastore, from the view of one client: what it has begun, what nobody works on, and what others have begun."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

UNKNOWN_CLIENT = ""  # Of records that earlier versions of the app made for OHIF: whoever asks may go on with them.


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


class Situation(NamedTuple):
    """What a strategy chooses from: the volumes without a final label that a client may get.

    Attributes:
        displayed: The volume that the client displays, if it says so.
        own: Requests of structures that the client or an unknown one has begun, and of volumes that it displays or has chosen.
        free: Volumes that nobody has begun or has been lent, the one that the client displays or has been lent first.
        others: Requests of structures that others have begun, those that nobody works on at present first, then the worst first.
        lent: Volumes that nobody has begun and that are lent to others.
        complete: Volumes in which every slice of every structure was annotated.
    """

    displayed: str | None
    own: list[AnnotationRequest]
    free: list[str]
    others: list[AnnotationRequest]
    lent: list[str]
    complete: list[str]


def find_situation(
    records: dict[str, dict[str, dict]], borrowers: dict[str, str], client: str, displayed: str | None, is_recent: Callable[[float], bool]
) -> Situation:  # fmt: skip
    """Return the situation of a client.

    Args:
        records: {image: {structure: record}} of the volumes that the client may get.
        borrowers: The client of each volume that is lent.
        client, displayed: The client, and the volume that it displays or None.
        is_recent: Tells whether a time in seconds since 1970 is so recent that the client of that time is still at work.
    """
    own, others, untouched, complete = [], [], [], []
    for image, structures in records.items():
        found = annotation_requests(image, structures)
        if not structures:
            untouched.append(image)
        elif not found:
            complete.append(image)
        begun = {r.label for r in found if r.client in (client, UNKNOWN_CLIENT)}
        is_chosen = image == displayed or borrowers.get(image) == client
        for r in found:
            if r.client in (client, UNKNOWN_CLIENT) or (is_chosen and r.label not in begun):
                own.append(r)
            elif r.label not in begun:  # Of a structure that both have begun, each annotator goes on with the own one.
                others.append(r)
    free = [i for i in untouched if borrowers.get(i, client) == client]
    free.sort(key=lambda i: (i != displayed, i not in borrowers))
    others.sort(key=lambda r: (is_recent(r.time), r.volume_dice))
    return Situation(displayed, own, free, others, [i for i in untouched if i not in free], complete)
