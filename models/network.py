"""The networks: functions of a frame and an explicit state. AOT and DeAOT differ in their blocks and their heads.

    features      = network.encode(frames)
    state         = network.start(features, masks, objects)
    logits, tokens = network.segment(features, state)
    state         = network.memorise(tokens, masks, state)
    state         = network.add_objects(features, masks, state, objects)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import Config, MemoryConfig
from models.attention import as_map, as_tokens
from models.blocks import AOTBlock, DeAOTBlock, Entry, Tokens
from models.decoder import Decoder
from models.encoders import build_encoder
from models.identity import IdentityBank
from models.memory.bank import Bank, TrainingBank
from models.memory.policies import Candidate, Evidence, build_policy
from models.memory.state import State
from models.position import sine_position


@dataclass(frozen=True)
class Features:
    """What the encoder says of frames, whatever the number of objects.

    Attributes:
        maps: (B, c, h, w) at stride 4, 8 and 16; projected: (B, C, h16, w16).
    """

    maps: tuple[Tensor, Tensor, Tensor]
    projected: Tensor

    def chunk(self, count: int) -> list[Features]:
        """Cut the batch into ``count`` equal parts (a clip encoded at once, frame-major, into its frames)."""
        maps = zip(*(feature_map.chunk(count) for feature_map in self.maps), strict=True)
        return [Features(part, projected) for part, projected in zip(maps, self.projected.chunk(count), strict=True)]


class Network(nn.Module):
    """What the families share: encoder, blocks with memory, decoder. No video lives in its attributes."""

    block_type: type[AOTBlock] | type[DeAOTBlock]
    normalised_identity = False  # DeAOT: LayerNorm on the identity embedding
    sees_position = True
    precise_parts: tuple[str, ...] = ()  # prefixes of modules that run in full precision under autocast, too
    notice = ""  # what users of the family must be told

    def __init__(self, config: Config):
        super().__init__()
        model = config.model
        self.align_corners, self.heads, self.memory = model.align_corners, model.heads, config.memory
        build_policy(config.memory)  # a misspelt name is an error now, not after minutes
        self.encoder = build_encoder(model.encoder, model.freeze_encoder)
        self.projector = nn.Conv2d(self.encoder.channels[-1], model.channels, 1)
        self.blocks = nn.ModuleList(
            self.block_type(index, model.channels, model.heads, model.drop_path, model.conv_dropout)
            for index in range(model.blocks))
        self.identity = IdentityBank(model.channels, model.align_corners, self.normalised_identity)
        self.norms, inputs = self._heads(model.channels, model.blocks)
        self.decoder = Decoder(inputs, self.encoder.channels[:3], model.channels, model.align_corners)
        self._initialise()

    # What a user of the network calls.

    def encode(self, frames: Tensor) -> Features:
        """frames: (B, 3, H, W), normalised RGB. Once per frame, whatever the number of objects."""
        return self.project(self.encoder(frames))

    def project(self, maps: list[Tensor]) -> Features:
        """The second half of :meth:`encode`, from the encoder's four maps."""
        *maps, last = maps
        return Features(tuple(maps), self.projector(last))

    def start(self, features: Features, masks: Tensor, objects: int | list[int], memory: MemoryConfig | None = None,
              slots: Tensor | None = None, detach_identity: bool = False) -> State:
        """Make the state of a video from its first labelled frame.

        Args:
            features: of that frame; masks: (B, H, W) label maps at the network's size (0 background, 255 nothing) or
                (B, 1 + n, H, W) soft masks.
            objects: number of objects, ids 1..n, n <= 10 (a list: of each sample).
            memory: rules; None: those of the network's configuration.
            slots: (B, 10) permutation of the identity slots (training); None: object i has slot i.
            detach_identity: the identity embedding learns nothing (second half of training).
        """
        memory = memory or self.memory
        batch, _, *grid = features.projected.shape
        position = sine_position((grid[0], grid[1]), features.projected.shape[1], features.projected) \
            if self.sees_position else None
        objects = [objects] * batch if isinstance(objects, int) else list(objects)
        policy = build_policy(memory)
        draft = State((grid[0], grid[1]), objects, position, slots, detach_identity, memory, policy,
                      long=TrainingBank([]), short=[], reference=[])
        outputs, entries = self._reference_pass(features, masks, draft)
        draft.reference, draft.short = outputs, [entries]
        # Training joins frames at each read, since autograd forbids writing in place after one.
        draft.long = TrainingBank(entries) if torch.is_grad_enabled() else Bank(entries, policy.slots())
        return draft

    def segment(self, features: Features, state: State,
                attend: Callable[[int, Any], Tensor] | None = None) -> tuple[Tensor, list[Tokens]]:
        """Segment the next frame by what the state remembers; the state is not changed.

        Args:
            attend: what a block, by its number, reads from the long-term memory for its query; None: :meth:`attend`.
        Returns:
            logits: (B, 1 + n, h4, w4) at stride 4; channels past a sample's own objects are hugely negative.
            tokens: for each block what :meth:`memorise` stores once the frame's masks are known.
        """
        def remembered(index: int, query, tokens: Tokens) -> tuple[Tensor, Entry]:
            long = attend(index, query) if attend is not None else self.attend(index, query, state)
            return long, state.short[0][index]

        outputs, tokens = self._propagate(features, state, remembered)
        return self._decode(features, outputs, state), tokens

    def attend(self, index: int, query, state: State) -> Tensor:
        """What block ``index`` reads from the long-term memory for its query: (B, L, .)."""
        return self.blocks[index].attend(query, state.long.read(index, state.policy.may_decline))

    def memorise(self, tokens: list[Tokens], masks: Tensor, state: State, evidence: Evidence | None = None) -> State:
        """Remember the frame just segmented: short-term always, long-term where gap and policy say so.

        Args:
            masks: as in :meth:`start`; evidence: for policies that need it.
        Returns:
            the state (the same object: inference writes in place).
        """
        return self.remember(self.fuse(tokens, masks, state), tokens, masks, state, evidence)

    def fuse(self, tokens: list[Tokens], masks: Tensor, state: State) -> list[Entry]:
        """The first half of :meth:`memorise`: each block's tokens with the identity of the masks."""
        identity = self._embed(masks, state)
        return [block.fuse(frame, identity) for block, frame in zip(self.blocks, tokens, strict=False)]

    def remember(self, entries: list[Entry], tokens: list[Tokens], masks: Tensor, state: State,
                 evidence: Evidence | None = None) -> State:
        """The second half of :meth:`memorise`: put the fused entries where gap and policy say."""
        state.frame += 1
        state.short = [*state.short, entries][-state.config.short_skip:]
        if state.frame - state.last_offer >= state.config.gap:
            state.last_offer = state.frame
            self._offer(entries, Candidate(state.frame, tokens[0][0], self.heads, evidence=evidence), state)
        return state

    def add_objects(self, features: Features, masks: Tensor, state: State, objects: int | list[int]) -> State:
        """Remember the next frame as a further reference, for objects that first appear in it (not memorise, too).

        Args:
            masks: label maps of *all* objects; objects: the new number of them.
        """
        state.objects = [objects] * len(state.objects) if isinstance(objects, int) else list(objects)
        outputs, entries = self._reference_pass(features, masks, state)
        state.frame += 1
        state.reference, state.short, state.last_offer = outputs, [entries], state.frame
        if isinstance(state.long, TrainingBank):
            state.long.add(entries)
        elif state.policy.protects_references:
            state.long.add_reference(entries, state.frame)
        else:
            self._offer(entries, Candidate(state.frame, entries[0][0], self.heads, reference=True), state)
        return state

    def store_weights(self, dtype: torch.dtype) -> None:
        """Keep the weights of convolutions and linear maps in half precision (inference): under autocast the same
        numbers, without a cast of every weight in every frame."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and not name.startswith(self.precise_parts):
                module.to(dtype)

    def reference_logits(self, features: Features, state: State) -> Tensor:
        """Logits (B, 1 + n, h4, w4) of the latest reference frame itself: what the auxiliary loss trains."""
        return self._decode(features, state.reference, state)

    def writes_next(self, state: State) -> bool:
        """Whether the next frame is offered to the long-term memory, or written to ``state.extra``."""
        return state.offers_next

    def describe_read(self, tokens: list[Tokens], state: State) -> dict[str, Tensor]:
        """What inspection should say of how the frame of ``tokens`` reads ``state.extra``: 0-d tensors by name; nothing
        by default."""
        return {}

    def describe_write(self, state: State) -> dict[str, Tensor]:
        """The same of what the latest frame wrote to ``state.extra``."""
        return {}

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits bilinearly to (H, W), straight from stride 4, as the official code does."""
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)

    # How it does it.

    def _reference_pass(self, features: Features, masks: Tensor, state: State) -> tuple[list[Tensor], list[Entry]]:
        """A frame with known masks: every block reads the frame's own fused tokens as both memories."""
        identity = self._embed(masks, state)
        entries: list[Entry] = []

        def itself(index: int, query, tokens: Tokens) -> tuple[Tensor, Entry]:
            entries.append(self.blocks[index].fuse(tokens, identity))
            return self.blocks[index].attend(query, (entries[-1], None)), entries[-1]

        outputs, _ = self._propagate(features, state, itself)
        return outputs, entries

    def _propagate(self, features: Features, state: State, memories) -> tuple[list[Tensor], list[Tokens]]:
        """Run the blocks; ``memories(index, query, tokens)`` gives what a block reads from the long-term memory, and
        its short-term memory."""
        stream = as_tokens(features.projected)  # (B, L, C)
        outputs, stored = [], []
        for index, block in enumerate(self.blocks):
            stream, query, tokens = block.query(stream, state.position)
            stream = self._read(index, stream, query, *memories(index, query, tokens), state)
            outputs.append(stream)
            stored.append(tokens)
        return outputs, stored

    def _read(self, index: int, stream: Tensor, query, attended: Tensor, short: Entry, state: State) -> Tensor:
        return self.blocks[index].read(stream, query, attended, short, state.grid)

    def _embed(self, masks: Tensor, state: State) -> Tensor:
        identity = self.identity(masks, max(state.objects), state.slots)
        return identity.detach() if state.detach_identity else identity

    def _offer(self, entries: list[Entry], candidate: Candidate, state: State) -> None:
        if isinstance(state.long, TrainingBank):
            state.long.add(entries)
        else:
            state.long.write(entries, state.policy.choose(state.long, candidate), candidate.frame, candidate.reference)

    def _decode(self, features: Features, outputs: list[Tensor], state: State) -> Tensor:
        tokens = self._head_input(features, outputs)
        logits = self.decoder(as_map(tokens, state.grid), *features.maps)
        if state.slots is not None:  # back from the shuffled slots
            order = F.pad(state.slots + 1, (1, 0), value=0)[:, :, None, None]
            logits = logits.gather(1, order.expand_as(logits))
        most = max(state.objects)
        logits = logits[:, : 1 + most]
        if min(state.objects) < most:
            channels = torch.arange(1 + most, device=logits.device)  # made there: nothing travels to the device
            unused = torch.stack([channels > count for count in state.objects])
            lowest = -1e10 if logits.dtype == torch.float32 else -1e4  # as the official code has it
            logits = logits.masked_fill(unused[:, :, None, None], lowest)
        return logits

    def _heads(self, channels: int, blocks: int) -> tuple[nn.Module, int]:
        """The norms before the decoder, and how many channels it gets."""
        raise TypeError("a family defines _heads")

    def _head_input(self, features: Features, outputs: list[Tensor]) -> Tensor:
        """What the decoder gets: (B, L, channels)."""
        raise TypeError("a family defines _head_input")

    def _initialise(self) -> None:
        """Xavier for every weight matrix outside the encoder and the identity bank, as the official code does."""
        for part in (self.projector, self.blocks, self.decoder):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)


class AOT(Network):
    """Associating Objects with Transformers (arXiv 2106.02638): the decoder sees every block."""

    block_type = AOTBlock

    def __init__(self, config: Config):
        super().__init__(config)
        # The official code has it, trains it never and uses it nowhere; kept so that its files convert both ways.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.model.channels), requires_grad=False)

    def _heads(self, channels: int, blocks: int) -> tuple[nn.Module, int]:
        return nn.ModuleList(nn.LayerNorm(channels) for _ in range(blocks)), channels * (blocks + 1)

    def _head_input(self, features: Features, outputs: list[Tensor]) -> Tensor:
        normed = [norm(output) for norm, output in zip(self.norms, outputs, strict=True)]
        return torch.cat([as_tokens(features.projected), *normed], -1)


class DeAOT(Network):
    """Decoupling features in AOT (arXiv 2210.09782): the decoder sees the last block, both streams normed as a map."""

    block_type = DeAOTBlock
    normalised_identity = True
    sees_position = False

    def _heads(self, channels: int, blocks: int) -> tuple[nn.Module, int]:
        return nn.GroupNorm(2, 2 * channels), 2 * channels

    def _head_input(self, features: Features, outputs: list[Tensor]) -> Tensor:
        return self.norms(outputs[-1].transpose(1, 2)).transpose(1, 2)  # statistics over all positions
