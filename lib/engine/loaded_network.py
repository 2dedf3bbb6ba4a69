"""Load a network onto its device, with everything that its checkpoint says about how to use it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from lib.engine.options import Options
from lib.imaging.frames import Frames
from lib.model import checkpoints, device
from lib.model.checkpoints import Checkpoint
from lib.model.correction_network import CORRECTION_NETWORK
from lib.model.features import encoder_digest
from lib.model.sam2_network import Sam2Network
from lib.model.tracking_network import TRACKING_NETWORK
from lib.model.volume_network import VOLUME_NETWORK
from lib.propagation.click_correction import correct_displayed
from lib.propagation.prompt_decoder import PromptDecoder
from lib.propagation.propagator import Propagator
from lib.propagation.volume_correction import adapt_to_prompts
from lib.quality.estimator import QualityEstimator

ZOOM_UP_TO = 512  # Pixels. Networks for larger images see small structures well without zooming.
THIN_SLICES = 1 / 128  # Slice distance as a share of the field of view: the smallest in the training of small networks.


@dataclass(frozen=True)
class LoadedNetwork:
    """A network that answers requests.

    Attributes:
        name: Checkpoint and device, which tell it from other networks in keys of caches.
        decoder, propagator: The two users of the network: one for slices with prompts, one for those between.
        plain_decoder: The decoder for requests that want the network's own answers.
        adapt: Adapts the mask of a volume to all of its prompts, see `lib.propagation.volume_correction.adapt_to_prompts`.
        encoder_digest: Networks with the same digest (those whose decoders were fine-tuned) share features.
        estimator: The estimator that was fitted to the checkpoint, or None.
        lock: Held while a request runs; one network answers one request at a time.
    """

    name: tuple
    decoder: PromptDecoder
    plain_decoder: PromptDecoder
    propagator: Propagator
    adapt: Callable
    encoder_digest: str
    estimator: QualityEstimator | None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def decoder_for(self, options: Options) -> PromptDecoder:
        """Return the decoder that a request wants."""
        return self.decoder if options.obey else self.plain_decoder

    def stride(self, options: Options, frames: Frames) -> int:
        """Return the stride: only slices whose index is a multiple of it are tracked. Crops have the stride of whole frames."""
        if options.stride or not self.decoder.zooms:
            return options.stride or 1
        volume, axis = frames.volume, frames.axis
        extent_mm = max(n * mm for a, (n, mm) in enumerate(zip(volume.shape, volume.spacing_mm, strict=True)) if a != axis)
        return max(1, round(extent_mm * THIN_SLICES / frames.slice_mm))


def load_network(checkpoint: Checkpoint, target: torch.device) -> LoadedNetwork:
    """Load a checkpoint onto a device.

    Raises:
        CheckpointError: The file is missing, damaged, or of another architecture.
    """
    model = checkpoints.load(checkpoint).to(target)
    metadata = checkpoints.metadata(checkpoint)
    score_drop, appearance_gain = (float(metadata.get(name, 0)) for name in ("presence_drop", "presence_gain"))
    network = Sam2Network(model, device.autocast_factory(target))
    is_small = checkpoint.image_size <= ZOOM_UP_TO
    correct = partial(correct_displayed, CORRECTION_NETWORK.load_shipped()) if is_small else None
    decoder, plain_decoder = PromptDecoder(network, is_small, obeys=True, correct=correct), PromptDecoder(network, is_small)
    tracks_beside = TRACKING_NETWORK.load_shipped() if is_small else None
    propagator = Propagator(network, score_drop, appearance_gain, looks_afresh=is_small, tracking_network=tracks_beside)
    adapt = partial(adapt_to_prompts, VOLUME_NETWORK.load_shipped())
    return LoadedNetwork(
        (checkpoint, target), decoder, plain_decoder, propagator, adapt, encoder_digest(model),
        QualityEstimator.from_json(metadata.get("slice_quality", "{}")),
    )  # fmt: skip
