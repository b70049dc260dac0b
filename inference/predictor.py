"""The predictor: segment a video one frame at a time, with masks in and masks out in the user's own ids."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from configs import Config
from inference.graphs import FrameGraph, Outcome, graphs_for
from inference.objects import ObjectIds, group_sizes, merge_groups, split_labels
from models import Features, Network, build_network, load_state, load_weights
from models.encoders import fold_frozen_norms
from models.identity import IDENTITIES, token_means
from models.memory import Evidence, State
from models.memory.bank import map_tensors
from models.memory.inspection import Note, Watch
from models.precision import autocast_type, precise, ready
from models.preprocess import input_size, prepare_frame, resize_labels

Picture = TypeVar("Picture", np.ndarray, Tensor)


@dataclasses.dataclass
class View:
    """One way of looking at the video (a scale, flipped or not), with memory of its own: a state for each group."""

    number: int
    size: tuple[int, int]
    flip: bool
    states: list[State]


class Predictor:
    """Segments a video frame by frame in bounded memory.

        predictor = Predictor("weights.safetensors", device="cuda")
        label_map = predictor.start(frame, label_map)
        for frame in frames:
            label_map = predictor.step(frame)

    Frames are (H, W, 3) uint8 RGB, label maps (H, W) uint8 with any ids (0 background, 255 nothing). Arrays in give
    arrays out; tensors in give tensors out on the predictor's device, without waiting for it.
    """

    def __init__(self, weights: str | Path, model: str | None = None, config: str | Path | None = None,
                 device: str | torch.device = "cpu", overrides: Iterable[str] = ()):
        """
        Args:
            weights: our .safetensors, a training checkpoint, or an official file.
            model: the variant, where the file does not say; config: a configuration file instead.
            device: where to compute; overrides: ``key=value`` settings.
        Raises:
            UserError: weights that are missing, damaged or another model's; unknown settings.
        """
        settings, tensors = load_weights(weights, model, config, overrides)
        settings.model.encoder_weights = None  # they are in the weights
        network = build_network(settings)
        load_state(network, tensors, weights)
        self._prepare(settings, network, device, torch.float32)

    @classmethod
    def from_config(cls, config: Config, network: Network | None = None, device: str | torch.device = "cpu",
                    dtype: torch.dtype = torch.float32) -> Predictor:
        """A predictor of a network in memory (which is copied, not changed); None: a new one with random weights."""
        predictor = cls.__new__(cls)
        network = build_network(config) if network is None else copy.deepcopy(network)
        predictor._prepare(config, network, device, dtype)
        return predictor

    def fork(self) -> Predictor:
        """Another predictor over the same network, for another video at the same time."""
        other = copy.copy(self)
        other._graphs = graphs_for(self.device, self.config.inference.graphs)  # their tensors hold one video's frame
        other._forget()
        return other

    def _prepare(self, config: Config, network: Network, device: str | torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        ready(self.device)
        fold_frozen_norms(network.encoder)
        network = network.eval().requires_grad_(False).to(self.device, dtype)
        self._amp = autocast_type(config.inference.amp, self.device)
        if self._amp is not None:
            network.store_weights(self._amp)
        self.network = network.to(memory_format=torch.channels_last)
        if config.inference.compile:
            network.encode = torch.compile(network.encode)
            network.decoder = torch.compile(network.decoder)
        self.keep_probabilities = False  # keep `probabilities` of each frame
        self.inspect = False  # note what happens to the memory, for `inspection`
        self._graphs = graphs_for(self.device, config.inference.graphs)
        self._forget()

    def _forget(self) -> None:
        self._ids = ObjectIds()
        self._views: list[View] = []
        self._size = (0, 0)
        self.probabilities: Tensor | None = None  # (1, 1 + n, H, W) of the latest frame, where `keep_probabilities`
        self._finite: Tensor | None = None  # bool on the device: whether all logits so far were numbers
        self._frame = 0
        self._notes: list[Note] = []  # of the latest frame, one a group

    # The three verbs.

    @torch.inference_mode()
    def start(self, frame: Picture, label_map: Picture) -> Picture:
        """Begin a video with its first labelled frame, forgetting any other.

        Returns:
            the label map, 255 replaced by 0.
        Raises:
            UserError: a label map without any object, or of another size than the frame.
        """
        self._forget()
        self._check_pixels(frame)
        self._size = (int(frame.shape[0]), int(frame.shape[1]))
        labels = self._admit(self._checked(label_map))
        if not len(self._ids):
            raise UserError("first mask: holds no object (255 belongs to nothing); give the frame where one first "
                            "appears, and objects the values 1 to 254")
        with self._precision():
            self._views = [self._first_view(frame, labels, View(number, size, flip, []))
                           for number, (size, flip) in enumerate(self.view_sizes(self._size))]
        if self.inspect:
            self._notes = [Watch(self.network, None, 0).note(state) for state in self._views[0].states]
        return self._to_user(labels, frame)

    @torch.inference_mode()
    def step(self, frame: Picture) -> Picture:
        """Segment the next frame. Returns its label map in the user's ids, at the frame's size."""
        self._next(frame)
        with self._precision():
            labels = self._replay(frame)
            if labels is None:
                labels, pending = self._segment(frame)
                for view, _, own, memory in pending:
                    self._memorise(view, own, memory)
        return self._to_user(labels, frame)

    @torch.inference_mode()
    def add_objects(self, frame: Picture, label_map: Picture) -> Picture:
        """Segment the next frame, in which the user gives (further) objects; given pixels win.

        Returns:
            the label map of the frame, given objects included.
        """
        checked = self._checked(label_map)
        self._next(frame)
        with self._precision():
            merged, pending = self._segment(frame)
            given = self._admit(checked)
            sizes = group_sizes(len(self._ids))
            for view, features, own, _ in pending:
                small = self._to_view(torch.where(given > 0, given, own), view)
                for group, (objects, part) in enumerate(zip(sizes, split_labels(small, len(sizes)), strict=True)):
                    self._add_reference(view, group, features, part, objects)
        return self._to_user(torch.where(given > 0, given, merged), frame)

    @property
    def object_ids(self) -> list[int]:
        """The user's ids of the objects given so far; index i of a probability map is object_ids[i - 1]."""
        return list(self._ids.ids)

    def inspection(self) -> dict[str, Any]:
        """What the memory did at the latest frame, where ``inspect`` is set ({} otherwise); plain values for JSON.

        Of the first view (scale, flip): ``number`` of the frame (0: that of :meth:`start`) and ``groups``, for each
        group of objects the frames ``stored``, ``references``, ``written`` and ``dropped``, whether the frame was
        ``offered`` to the long-term bank, then the attention ``mass`` that each stored frame received, ``objects``
        (by the user's ids: ``presence``, share of the frame; ``confidence``, mean margin), ``global`` where DDMemory
        wrote, ``bytes``.
        """
        groups = [note.record(self._ids.ids[IDENTITIES * group :][:IDENTITIES])
                  for group, note in enumerate(self._notes)]
        return {"number": self._frame, "groups": groups} if groups else {}

    def finite(self) -> bool:
        """Whether all logits of the current video were numbers; masks after one that was none mean nothing. Waits."""
        return self._finite is None or bool(self._finite)

    def num_bytes(self) -> int:
        """Bytes of the memory of the current video."""
        return sum(state.num_bytes() for view in self._views for state in view.states)

    def view_sizes(self, size: tuple[int, int]) -> list[tuple[tuple[int, int], bool]]:
        """The views of a video whose frames have ``size`` (H, W): for each the network's input size, and whether it is
        flipped."""
        settings = self.config.inference
        sizes = [input_size(*size, self.network.align_corners, settings.short_limit, settings.long_edge, scale)
                 for scale in settings.scales]
        return [(size, flip) for size in sizes for flip in ((False, True) if settings.flip else (False,))]

    # How a frame goes through.

    def _next(self, frame: Picture) -> None:
        """A further frame of the video begins."""
        self._frame, self._notes = self._frame + 1, []
        if not self._views:
            raise UserError("predictor: no video has begun; call start() with the first labelled frame")
        self._check_pixels(frame)
        if tuple(frame.shape[:2]) != self._size:
            raise UserError(f"frame: {frame.shape[1]}x{frame.shape[0]} pixels in a video of "
                            f"{self._size[1]}x{self._size[0]}; start another video for another size")

    @staticmethod
    def _check_pixels(frame: Picture) -> None:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype not in (np.uint8, torch.uint8):
            raise UserError(f"frame: {tuple(frame.shape)} {frame.dtype}; give (H, W, 3) uint8 RGB")

    def _segment(self, frame: Picture):
        """Labels of the frame (indices, at its size), and for each view what its memory needs."""
        pending, merged = [], None
        for view in self._views:
            features = self.network.encode(self._look(frame, view))
            memory = [self._segment_group(features, state) for state in view.states]
            logits = [self.network.upsample(precise(group), self._size) for _, group in memory]
            if view.flip:
                logits = [group.flip(-1) for group in logits]
            if len(self._views) == 1 and len(logits) == 1 and not self.keep_probabilities:
                scores = logits[0]  # softmax keeps the order
            else:
                scores = merge_groups(logits)
            pending.append((view, features, scores.argmax(1).to(torch.uint8), memory))
            merged = scores if merged is None else merged + scores
        if self.keep_probabilities:
            self.probabilities = merged / len(self._views)
        labels = pending[0][2] if len(pending) == 1 else merged.argmax(1).to(torch.uint8)
        return labels, pending

    def _replay(self, frame: Picture) -> Tensor | None:
        """Segment and remember the frame by a recorded graph; None where there is none (yet) for such frames.

        Graphs are for one view and one group of objects, and give masks alone.
        """
        view = self._views[0]
        if self._graphs is None or len(self._views) > 1 or len(view.states) > 1 or self.keep_probabilities \
                or self.inspect:
            return None
        pixels = frame if isinstance(frame, Tensor) else torch.from_numpy(np.ascontiguousarray(frame))
        state = view.states[0]

        def record(recorder) -> FrameGraph:
            def body(pixels: Tensor, state: State, attend) -> Outcome:
                features = self.network.encode(self._look(pixels, view))
                logits, tokens = self.network.segment(features, state, attend)
                labels = self.network.upsample(precise(logits), self._size).argmax(1).to(torch.uint8)
                own = self._to_view(labels, view)
                return Outcome(labels, own, tokens, self.network.fuse(tokens, own, state), logits)

            return FrameGraph(recorder, body, self.network.attend, pixels.to(self.device), state)

        graph = self._graphs.get((self._size, view.size, view.flip, *state.objects), record)
        if graph is None:
            return None
        found = graph(pixels, state)
        self._watch(found.logits)
        judged = state.policy.needs_evidence and state.offers_next
        evidence = gather_evidence(found.logits, self.network.align_corners) if judged else None
        entries = map_tensors(found.entries, Tensor.clone)
        view.states[0] = self.network.remember(entries, found.tokens, found.own, state, evidence)
        return found.labels

    def _watch(self, logits: Tensor) -> None:
        finite = torch.isfinite(logits).all()
        self._finite = finite if self._finite is None else self._finite & finite

    def _segment_group(self, features: Features, state: State):
        """What the group stores once its masks are known, and its logits at stride 4."""
        logits, tokens = self.network.segment(features, state)
        self._watch(logits)
        return tokens, logits

    def _add_reference(self, view: View, group: int, features: Features, labels: Tensor, objects: int) -> None:
        """Make the frame a reference of a group; a new group begins with it."""
        state = view.states[group] if group < len(view.states) else None
        watch = Watch(self.network, state, self._frame) if self._inspected(view) else None
        if state is not None:
            view.states[group] = self.network.add_objects(features, labels, state, objects)
        else:
            view.states.append(self.network.start(features, labels, objects))
        if watch is not None:
            self._notes.append(watch.note(view.states[group]))

    def _memorise(self, view: View, labels: Tensor, memory) -> None:
        parts = split_labels(self._to_view(labels, view), len(view.states))
        for group, (state, part, (tokens, logits)) in enumerate(zip(view.states, parts, memory, strict=True)):
            inspected = self._inspected(view)
            judged = state.policy.needs_evidence and state.offers_next
            evidence = gather_evidence(logits, self.network.align_corners) if judged or inspected else None
            watch = Watch(self.network, state, self._frame) if inspected else None
            if watch is not None:
                watch.look(tokens, state)
            view.states[group] = self.network.memorise(tokens, part, state, evidence)
            if watch is not None:
                self._notes.append(watch.note(view.states[group], evidence))

    def _inspected(self, view: View) -> bool:
        return self.inspect and view.number == 0

    def _first_view(self, frame: Picture, labels: Tensor, view: View) -> View:
        features = self.network.encode(self._look(frame, view))
        sizes = group_sizes(len(self._ids))
        view.states = [self.network.start(features, part, objects) for objects, part
                       in zip(sizes, split_labels(self._to_view(labels, view), len(sizes)), strict=True)]
        return view

    def _look(self, frame: Picture, view: View) -> Tensor:
        image = prepare_frame(frame, view.size, self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        return image.flip(-1) if view.flip else image

    def _to_view(self, labels: Tensor, view: View) -> Tensor:
        """Labels (1, H, W) of the frame as the view's network sees them."""
        return resize_labels(labels.flip(-1) if view.flip else labels, view.size)

    def _checked(self, label_map: Picture) -> Tensor:
        """The user's label map as (H, W) uint8. Raises UserError for another size, or values that are no ids."""
        labels = label_map if isinstance(label_map, Tensor) else torch.from_numpy(np.ascontiguousarray(label_map))
        if tuple(labels.shape) != self._size:
            raise UserError(f"mask: shape {tuple(labels.shape)} for a frame of {self._size}; give one label a pixel")
        if labels.dtype not in (torch.uint8, torch.bool) and (labels.double() != labels.to(torch.uint8)).any():
            raise UserError(f"mask: {labels.dtype} values that are no ids; give 0 to 254, and 255 for nothing")
        return labels.to(torch.uint8)

    def _admit(self, labels: Tensor) -> Tensor:
        """Labels in the user's ids as indices, (1, H, W) uint8 on the device; new ids become known."""
        indices = self._ids.admit(labels)
        self._table = self._ids.table(self.device)
        return indices.to(self.device).unsqueeze(0)

    def _to_user(self, labels: Tensor, like: Picture) -> Picture:
        ids = self._table[labels[0].int()]
        return ids if isinstance(like, Tensor) else ids.cpu().numpy()

    def _precision(self) -> AbstractContextManager:
        return nullcontext() if self._amp is None else torch.autocast(self.device.type, self._amp)


def gather_evidence(logits: Tensor, align_corners: bool) -> Evidence:
    """What the network believed about a frame, from its logits (1, 1 + n, h4, w4), for the memory's policies."""
    probability = logits.float().softmax(1)
    best, winner = probability.topk(2, dim=1)
    margin = best[:, 0] - best[:, 1]  # (1, h4, w4)
    objects = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    inside = (winner[:, :1] == objects).float()  # (1, n, h4, w4)
    area = inside.sum((0, 2, 3))
    entropy = -(probability * probability.clamp_min(1e-12).log()).sum(1)  # (1, h4, w4)
    anything = inside.sum(1)
    soft = 1 - probability[:, 0]  # (1, h4, w4)
    return Evidence(
        presence=area / margin.numel(),
        rival=(soft * (1 - anything)).sum() / anything.sum().clamp_min(1),
        confidence=(inside * margin.unsqueeze(1)).sum((0, 2, 3)) / area.clamp_min(1),
        entropy=(entropy * anything).sum() / anything.sum().clamp_min(1),
        foreground=token_means(soft.unsqueeze(1), 4, align_corners).flatten())
