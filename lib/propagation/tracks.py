"""Model outputs for prompted slices (`Annotation`) and for a whole volume (`Tracks`)."""

from dataclasses import dataclass, field

import torch

from lib.model.sam2_network import ABSENT_LOGIT

ABSENT_SCORE = -10.0  # Object score logit of slices that were not tracked.


@dataclass(frozen=True, eq=False)
class Annotation:
    """A prompted slice as the network sees it.

    Attributes:
        logits: Mask logits (1, 1, h, w) at stride 4 of the network's square.
        iou: Predicted IoU in [0, 1].
        object_score: Logit of the probability that the object is on this slice.
        memory: Memory entry that passes from this slice attend to.
        key: Everything that it depends on besides volume, crop and network; tells it from other annotations.
        slice_logits: Logits (Y, X) of the slice's own pixels where they are known better than by `logits`, else None.
    """

    logits: torch.Tensor
    iou: float
    object_score: float
    memory: dict = field(repr=False)
    key: tuple = ()
    slice_logits: torch.Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the object is not on this slice."""
        return self.object_score <= 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        own = [] if self.slice_logits is None else [self.slice_logits]
        tensors = (self.logits, self.memory["maskmem_features"], self.memory["obj_ptr"], *self.memory["maskmem_pos_enc"], *own)
        return sum(t.nbytes for t in tensors)


@dataclass(frozen=True, eq=False)
class Tracks:
    """Model outputs for T slices.

    Attributes:
        logits: Mask logits, float32 (T, h, w) at stride 4 of the network's square; `ABSENT_LOGIT` where nothing was tracked.
        iou: Predicted IoU (T,) in [0, 1].
        object_score: Logits (T,) of the probability that the object is there.
        agreement: Dice (T,) of the two passes through a slice where there are two, else NaN.
    """

    logits: torch.Tensor
    iou: torch.Tensor
    object_score: torch.Tensor
    agreement: torch.Tensor

    def select(self, slices: slice) -> "Tracks":
        """Return the outputs for some of the slices."""
        return Tracks(self.logits[slices], self.iou[slices], self.object_score[slices], self.agreement[slices])

    @classmethod
    def from_annotations(cls, annotated: dict[int, Annotation], total: int, device: torch.device, absent_iou: float = 1.0) -> "Tracks":
        """Return the outputs for `total` slices of which only the annotated ones are known.

        Args:
            absent_iou: Predicted IoU of the other slices, where the object counts as absent.
        """
        shape = next(iter(annotated.values())).logits.shape[-2:]
        tracks = cls(
            torch.full((total, *shape), ABSENT_LOGIT, device=device), torch.full((total,), absent_iou, device=device),
            torch.full((total,), ABSENT_SCORE, device=device), torch.full((total,), torch.nan, device=device),
        )  # fmt: skip
        for t, a in annotated.items():
            tracks.logits[t], tracks.iou[t], tracks.object_score[t] = a.logits[0, 0], a.iou, a.object_score
        return tracks
