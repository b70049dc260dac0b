"""The training step's model: a clip in, its losses out. One module, so that DistributedDataParallel can wrap it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from configs.schema import Config
from models import Network
from models.encoders import FoldedEncoder
from models.preprocess import normalise
from training.losses import frame_loss, hard_share, reference_weight

_STALE = 1 << 41  # no sample: keeps the numbers of this choice apart from those of the samples


class ClipModel(nn.Module):
    """Runs a network over a batch of clips as the official engine does (facts: aot-benchmark, aot_engine.py).

    The first frame is the reference. Each later frame is segmented from the memory, then remembered with its true
    masks, or, from ``train.feed_predictions_from`` of the schedule on, with the network's own (no gradient flows
    through them, and the identity embedding learns no more).
    """

    def __init__(self, network: Network, config: Config):
        super().__init__()
        self.network = network
        self.encoder = FoldedEncoder(network.encoder)
        self.settings, self.seed = config.train, config.seed
        self.memory = config.memory.model_copy(
            update={"gap": config.train.memory_gap, "global_interval": config.train.global_interval})

    def forward(self, frames: Tensor, masks: Tensor, objects: list[int], step: int,
                slots: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of a batch of clips.

        Args:
            frames: (T, B, 3, H, W) uint8 RGB, or floats that are normalised already.
            masks: (T, B, H, W) integers: 0 background, 1..n objects, 255 ignored.
            objects: number of objects of each sample, all present in frame 0.
            step: number of the optimiser step, from 0; it decides what the schedules say.
            slots: (B, 10) identity slots, shuffled for each sample; None: object i has slot i.
        Returns:
            ``loss`` (); ``frame_losses`` (T', B), references first; ``predictions`` (T - references, B, H, W) uint8.
            A reference whose loss has no weight is not decoded and has no row.
        """
        train, network = self.settings, self.network
        count, _, _, *size = frames.shape
        share = hard_share(step, train.steps, train.hard_ratio, train.hard_from)
        weight = reference_weight(step, train.steps, train.aux_weight, train.aux_ratio)
        own_predictions = step >= train.feed_predictions_from * train.steps

        images = frames.flatten(0, 1)  # (T * B, 3, H, W), frame-major
        images = normalise(images.float()) if images.dtype == torch.uint8 else images
        features = network.project(self.encoder(images)).chunk(count)

        def loss_of(logits: Tensor, index: int) -> Tensor:
            return frame_loss(logits, masks[index], objects, share)

        state = network.start(features[0], masks[0], objects, self.memory, slots, own_predictions)
        # Of the step alone, so alike for all its micro-batches, on all ranks, and after a resumption.
        stale = np.random.default_rng([self.seed, step, _STALE]).random() < train.stale_local
        references = 2 if train.previous_frame_reference else 1
        reference_losses, losses, predictions = [], [], []
        for index in range(count):
            if index >= references:
                logits, tokens = network.segment(features[index], state)
                logits = network.upsample(logits, tuple(size))  # (B, 1 + most, H, W)
                losses.append(loss_of(logits, index))
                labels = hard_labels(logits.detach())
                predictions.append(labels)
                if index < count - 1:
                    local = state.short
                    state = network.memorise(tokens, labels if own_predictions else masks[index], state)
                    if stale:  # only the long-term memory can know what happened since
                        state.short = local
                    if train.detach_every and index % train.detach_every == 0:
                        state = state.detach()
                continue
            if index:
                state = network.add_objects(features[index], masks[index], state, objects)
            if weight > 0:
                logits = network.upsample(network.reference_logits(features[index], state), tuple(size))
                reference_losses.append(loss_of(logits, index))
        total = torch.stack(losses).mean(0)  # (B,)
        if reference_losses:
            total = total + weight * torch.stack(reference_losses).mean(0)
        return {"loss": total.mean(), "frame_losses": torch.stack([*reference_losses, *losses]).detach(),
                "predictions": torch.stack(predictions)}


def hard_labels(logits: Tensor) -> Tensor:
    """The argmax over channels, (B, C, H, W) to (B, H, W) uint8: several times faster than argmax where C is small."""
    best = logits[:, 0]
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for channel in range(1, logits.shape[1]):
        labels.masked_fill_(logits[:, channel] > best, channel)
        best = torch.maximum(best, logits[:, channel])
    return labels
