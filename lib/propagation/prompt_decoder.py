"""Decode the prompts of one slice to an `Annotation`: the mask that the user sees there, and the memory that passes attend to."""

from collections.abc import Sequence

import numpy as np
import torch

from lib.model.features import SliceFeatures
from lib.model.sam2_network import Sam2Network
from lib.prompts.click_order import infer_click_order
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.box_filling import fill_box
from lib.propagation.obedience import Correction, obey_clicks
from lib.propagation.result_cache import ResultCache
from lib.propagation.tracks import Annotation, Tracks
from lib.propagation.zoom import START_LOGIT_LIMIT, click_agreement, refine_zoomed

MOST_CLICKS_IN_ORDER = 16  # A prompt with more clicks at once (many scribbles) is decoded without those before the last.
PRESENT_SCORE = 1.0  # Least object score of a slice where the user says that the structure is.
RECENT_BYTES = 64 << 20  # Bytes of recent decodings to keep, because clicks on a slice come one after the other.


class PromptDecoder:
    """Decodes the prompts of slices. Its only state is a cache of recent decodings, which saves time and changes no result.

    Args:
        network: The network.
        zooms: Whether the surroundings of a small structure are decoded again, enlarged; networks for large images need not.
        obeys: Whether masks are made to obey the clicks and boxes (see `lib.propagation.obedience`), or are the network's own.
        correct: What else answers to boxes and further clicks on a slice; networks for large images need not have it.
    """

    def __init__(self, network: Sam2Network, zooms: bool = False, obeys: bool = False, correct: Correction | None = None):
        self.network, self.zooms, self.obeys, self._correct_clicks = network, zooms, obeys, correct
        self._recent = ResultCache(RECENT_BYTES)

    @torch.inference_mode()
    def annotate(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> Annotation:
        """Decode slice `t` from its prompt alone, without memory.

        Several clicks are decoded in three ways: all at once; all at once, starting from the resulting mask; and one after the other. The
        result that agrees with most of the clicks is taken, and among equals the one with the highest predicted IoU.
        """
        if prompt.mask is not None:
            return self._painted(features, t, prompt)
        output, slice_logits = self._decode_displayed(features, t, prompt)
        if slice_logits is not None:
            output["pred_masks"] = features.from_slices(slice_logits[None], output["pred_masks"].shape[-1])
        return self._annotation(features, t, output, (t, prompt.key), slice_logits)

    def displayed_logits(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> torch.Tensor:
        """Return the logits (Y, X) of the mask that the user sees for this prompt."""
        output, slice_logits = self._decode_displayed(features, t, prompt)
        return features.to_slices(output["pred_masks"][0])[0] if slice_logits is None else slice_logits

    @torch.inference_mode()
    def adopt(self, features: SliceFeatures, t: int, prompt: SlicePrompt, known: Annotation, slice_logits: torch.Tensor) -> Annotation:
        """Return an annotation whose mask is known from other (differently cropped) frames of the slice.

        Args:
            known: The annotation in the other frames.
            slice_logits: Its logits (Y, X) of the pixels of these frames.
        """
        if prompt.mask is not None:
            return self._painted(features, t, prompt)
        start = features.from_slices(slice_logits[None], self.network.mask_side)
        output = self.network.decode(features, [t], prompt=prompt, start_logits=_limited(start))
        output["pred_masks"] = start
        output["object_score_logits"] = torch.full_like(output["object_score_logits"], known.object_score)
        return self._annotation(features, t, output, known.key, slice_logits)

    @torch.inference_mode()
    def correct(
        self, features: SliceFeatures, t: int, prompt: SlicePrompt, annotated: dict[int, Annotation], tracks: Tracks, key: tuple
    ) -> tuple[Annotation, int]:
        """Decode slice `t`, which has a tracked mask already; the clicks on it correct that mask one after the other.

        Args:
            annotated: The annotations that `tracks` came from, by slice.
            tracks: The displayed result, with the mask to correct.
            key: Key of the annotation.

        Returns:
            The annotation, and how many of the clicks were made where the mask displayed before them was wrong.
        """
        nearest = min(annotated, key=lambda s: abs(s - t))
        memories, time = {"cond_frame_outputs": {0: annotated[nearest].memory}, "non_cond_frame_outputs": {}}, abs(nearest - t)
        tracked = tracks.logits[t][None, None]
        outputs = [({"pred_masks": tracked}, features.to_slices(tracked[0])[0])]

        def decode(clicks: SlicePrompt) -> tuple[dict, torch.Tensor]:
            """Return the network's output and logits (Y, X) after the clicks; those before the last ones are known."""
            for n in range(len(outputs), len(clicks.labels) + 1):
                before, displayed = outputs[-1]
                part, start = SlicePrompt(clicks.points[:n], clicks.labels[:n]), _limited(before["pred_masks"])
                output = self.network.decode(features, [t], prompt=part, start_logits=start, memories=memories, time=time)
                logits = features.to_slices(output["pred_masks"][0])[0]
                if self.obeys:
                    logits = self._obey(features, t, part, logits, displayed, is_tracked=True)
                    output["pred_masks"] = features.from_slices(logits[None], self.network.mask_side)
                outputs.append((output, logits))
            return outputs[len(clicks.labels)]

        in_order = infer_click_order(prompt, lambda clicks: (decode(clicks)[1] > 0).cpu().numpy(), corrects=True)
        output, logits = decode(in_order)
        if self.obeys:
            is_there = bool((logits > 0).any())
            score = output["object_score_logits"]
            output["object_score_logits"] = score.clamp_min(PRESENT_SCORE) if is_there else score.clamp_max(-PRESENT_SCORE)
        wrong = _count_wrong(in_order, [logits for _, logits in outputs[:-1]])
        return self._annotation(features, t, output, key, logits if self.obeys else None), wrong

    def count_wrong_alone(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> int:
        """Return how many of the clicks on a slice were made where the mask displayed before them was wrong, if they are decoded alone."""
        in_order = self._in_order(features, t, prompt)
        parts = [SlicePrompt(in_order.points[:n], in_order.labels[:n]) for n in range(1, len(in_order.labels))]
        displayed = [self.displayed_logits(features, t, part) for part in parts]
        return _count_wrong(in_order, [torch.full(features.frames.size, -1.0), *displayed])

    def _decode_displayed(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> tuple[dict, torch.Tensor | None]:
        """Return the network's output for a prompt, and the logits (Y, X) of the slice if there are better ones, else None."""
        key = "displayed", features.frames.key, t, prompt.key
        result = self._recent.get(key)
        if result is None:
            in_order = self._in_order(features, t, prompt)
            output = self._decode_best(features, t, in_order)
            refined = refine_zoomed(self, features, t, in_order, output["pred_masks"]) if self.zooms else None
            if self.obeys:
                answer = features.to_slices(output["pred_masks"][0])[0] if refined is None else refined
                refined = self._obeying(features, t, in_order, answer)
                output["object_score_logits"] = output["object_score_logits"].clamp_min(PRESENT_SCORE)
            result = output, refined
            self._recent.put(key, result, _size_bytes(output) + (0 if refined is None else refined.nbytes))
        return dict(result[0]), result[1]

    def _in_order(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> SlicePrompt:
        """Return the prompt with its clicks in the order in which they were probably made."""
        if not self.obeys or len(prompt.labels) > MOST_CLICKS_IN_ORDER:
            return prompt
        return infer_click_order(prompt, lambda earlier: (self.displayed_logits(features, t, earlier) > 0).cpu().numpy())

    def _obeying(self, features: SliceFeatures, t: int, prompt: SlicePrompt, answer: torch.Tensor) -> torch.Tensor:
        """Return logits (Y, X) that obey a prompt whose clicks are in the order in which they were made, from the answer (Y, X) to it."""
        if (prompt.labels > 1).all():
            filled = fill_box(features.frames.stack[t], prompt, answer.cpu().numpy(), self._correct_clicks)
            return torch.from_numpy(filled).to(answer.device)
        earlier = prompt.without_last_click()
        has_earlier = 1 < len(prompt.labels) <= MOST_CLICKS_IN_ORDER
        return self._obey(features, t, prompt, answer, self.displayed_logits(features, t, earlier) if has_earlier else None)

    def _obey(
        self, features, t: int, prompt: SlicePrompt, answer: torch.Tensor, earlier: torch.Tensor | None, is_tracked: bool = False
    ) -> torch.Tensor:
        """Call `obey_clicks` with tensors (Y, X)."""
        earlier = None if earlier is None else earlier.cpu().numpy()
        logits = obey_clicks(features.frames.stack[t], prompt, answer.cpu().numpy(), earlier, is_tracked, self._correct_clicks)
        return torch.from_numpy(logits).to(answer.device)

    def _decode_best(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> dict:
        """Return the output that agrees best with the clicks."""
        at_once = self.network.decode(features, [t], prompt=prompt)
        if len(prompt.labels) < 2 or (prompt.labels == 2).any():
            return at_once
        again = self.network.decode(features, [t], prompt=prompt, start_logits=_limited(at_once["pred_masks"]))

        def agreement_and_iou(output: dict) -> tuple[float, float]:
            return click_agreement(prompt, features.to_slices(output["pred_masks"][0])[0]), float(output["iou"][0])

        return max((at_once, again, self._decode_in_turn(features, t, prompt)), key=agreement_and_iou)

    def _decode_in_turn(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> dict:
        """Return the output for clicks that are given one after the other, each with the mask of those before."""
        def key(clicks: SlicePrompt) -> tuple:
            return "in turn", features.frames.key, t, clicks.key

        pending = [prompt]
        while self._recent.get(key(pending[-1])) is None and len(pending[-1].labels) > 1:
            pending.append(pending[-1].without_last_click())
        output = self._recent.get(key(pending[-1]))
        for clicks in reversed(pending[:-1] if output else pending):
            start = None if output is None else _limited(output["pred_masks"])
            output = self.network.decode(features, [t], prompt=clicks, start_logits=start)
            self._recent.put(key(clicks), output, _size_bytes(output))
        return dict(output)

    def _painted(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> Annotation:
        output = self.network.take_painted(features, t, prompt.mask)
        return self._annotation(features, t, output, (t, prompt.key))

    def _annotation(self, features, t: int, output: dict, key: tuple, slice_logits: torch.Tensor | None = None) -> Annotation:
        memory = self.network.encode_prompted_memory(features, t, output, slice_logits)
        score = float(output["object_score_logits"][0, 0])
        return Annotation(output["pred_masks"].float(), float(output["iou"][0]), score, memory, key, slice_logits)


def _count_wrong(prompt: SlicePrompt, displayed: Sequence[torch.Tensor]) -> int:
    """Return how many clicks were made where the mask before them, logits (Y, X), was wrong."""
    count = 0
    for (x, y), label, logits in zip(prompt.points, prompt.labels, displayed, strict=True):
        row, column = (int(np.clip(np.rint(v), 0, n - 1)) for v, n in zip((y, x), logits.shape, strict=True))
        count += bool(logits[row, column] > 0) != bool(label)
    return count


def _limited(logits: torch.Tensor) -> torch.Tensor:
    return logits.clamp(-START_LOGIT_LIMIT, START_LOGIT_LIMIT)


def _size_bytes(output: dict) -> int:
    return sum(x.nbytes for x in output.values() if torch.is_tensor(x))
