"""What the network says of annotated slices, and of all slices."""

from dataclasses import dataclass, field

import torch

from lib.propagation.gaps import ABSENT


@dataclass(frozen=True, eq=False)
class Annotation:
    """A prompted slice, decoded: logits (1, 1, h, w) at stride 4, predicted IoU, object score logit, memory entry; `key`
    tells it from others (everything it depends on within one volume and network); `fine` are logits (Y, X) of the slice's own
    pixels, where they are better known."""

    logits: torch.Tensor
    iou: float
    object_score: float
    memory: dict = field(repr=False)
    key: tuple = ()
    fine: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        positions = self.memory["maskmem_pos_enc"]
        return sum(t.nbytes for t in (self.logits, self.memory["maskmem_features"], self.memory["obj_ptr"], *positions))


@dataclass(frozen=True, eq=False)
class Tracks:
    """Outcome for T slices.

    Attributes:
        logits: float32 (T, h, w) at stride 4 of the model's square; ABSENT where nothing was tracked.
        iou: (T,) predicted IoU in [0, 1]. object_score: (T,) logits of presence.
        agreement: (T,) Dice of the two directions where there are two, else NaN.
    """

    logits: torch.Tensor
    iou: torch.Tensor
    object_score: torch.Tensor
    agreement: torch.Tensor

    def of_slices(self, which: slice) -> "Tracks":
        """Of some slices."""
        return Tracks(self.logits[which], self.iou[which], self.object_score[which], self.agreement[which])

    @classmethod
    def of(cls, annotated: dict[int, Annotation], total: int, device: torch.device, iou: float = 1.0) -> "Tracks":
        """The annotated ones of `total` slices; the others are without the object, of which `iou` says how sure that is."""
        shape = next(iter(annotated.values())).logits.shape[-2:]
        tracks = cls(
            torch.full((total, *shape), ABSENT, device=device), torch.full((total,), iou, device=device),
            torch.full((total,), -10.0, device=device), torch.full((total,), torch.nan, device=device),
        )  # fmt: skip
        for t, a in annotated.items():
            tracks.logits[t], tracks.iou[t], tracks.object_score[t] = a.logits[0, 0], a.iou, a.object_score
        return tracks
