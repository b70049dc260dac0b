"""A network that learns: one step of its optimiser, and what a checkpoint holds of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from common.errors import TrainingDiverged
from common.ranks import Ranks
from configs import Config
from datasets.mixture import Batch
from models import Network
from models.noise import SampleNoise
from models.precision import autocast_type
from training.clip_model import ClipModel
from training.optimiser import Average, build_optimiser, set_learning_rate
from training.run_folder import save_batch

REMEDY = ("begin another run, with --output, a lower train.lr or train.amp=none, and train.weights=CHECKPOINT to start "
          "from its weights")

# The scaler of half precision leaves out a step whose gradient overflows, and halves its scale, which begins at 65536
# and normally stays above 1. Below this one the gradient is not finite at any scale.
LEAST_SCALE = 1e-4


@dataclass(frozen=True)
class Step:
    """What a step of the optimiser has to say.

    Attributes:
        loss: mean over the clips of all ranks; gradient: its norm before clipping, not finite where a half-precision
            step was left out; lr: the learning rate; data_seconds: spent waiting for clips.
        stop: whether a rank was asked to stop.
        batch: the last micro-batch; predictions: (T', B, H, W) uint8, of its last T' frames.
    """

    loss: float
    gradient: float
    lr: float
    data_seconds: float
    stop: bool
    batch: Batch
    predictions: Tensor


class Learner:
    """A network on its device with everything that changes while it learns.

    Args:
        network: on any device; run: where a batch is kept whose loss is not finite; ranks: this process among all.
    """

    def __init__(self, network: Network, config: Config, run: Path, ranks: Ranks):
        self.settings, self.seed, self.run, self.ranks = config.train, config.seed, run, ranks
        self.network = network.to(ranks.device).train()
        self.clip_model = self.model = ClipModel(network, config)
        if ranks.count > 1:
            # Once the network's own masks feed its memory the identity bank gets no gradient.
            self.model = DistributedDataParallel(self.clip_model, find_unused_parameters=True)
        self.optimiser = build_optimiser(network, config.train)
        self.average = Average(network, config.train)
        self.amp = autocast_type(config.train.amp, ranks.device)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=self.amp is torch.float16)

    def step(self, number: int, loader: Iterator[Batch], stopped: Callable[[], bool] = lambda: False) -> Step:
        """Do step ``number`` (from 0) with the next ``train.accumulate`` micro-batches.

        Raises:
            TrainingDiverged: the loss or the gradient is not finite; the weights are as before, the batch lies in the
                run's folder.
        """
        settings, device = self.settings, self.ranks.device
        torch.manual_seed(self.seed + number)  # what draws outside a sample's own numbers is new in every step
        lr = set_learning_rate(self.optimiser, number, settings)
        waited, batches, losses, predictions = 0.0, [], [], None
        for part in range(settings.accumulate):
            asked = time.perf_counter()
            batches.append(next(loader).to(device))
            waited += time.perf_counter() - asked
            last = part == settings.accumulate - 1
            with self.model.no_sync() if self.ranks.count > 1 and not last else nullcontext():
                loss, predictions = self._backward(batches[-1], number)
            losses.append(loss)
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.clip_model.parameters(), settings.clip_gradient)
        own = torch.stack(losses)
        mean = self.ranks.mean(torch.stack([own.mean(), own.new_full((), float(stopped()))]))
        # The step's only wait for the device: nothing above looks at a value.
        loss, stop, norm, *losses = torch.cat([mean, norm.to(mean).view(1), own]).tolist()
        self._check(number, loss, norm, losses, batches)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if settings.ema:
            self.average.update(number)
        return Step(loss, norm, lr, waited, stop > 0, batches[-1], predictions)

    def weights(self) -> dict[str, Tensor]:
        """What is validated and handed on: the averages, or the network's own weights where there are none."""
        return self.average.state() if self.settings.ema else self.network.state_dict()

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must hold to go on to the bit."""
        return {"model": self.network.state_dict(), "ema": self.average.state(),
                "optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.network.load_state_dict(state["model"])
        self.average.load(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:  # empty where the steps so far ran on a processor, in float32
            self.scaler.load_state_dict(state["scaler"])

    def _backward(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        """Add a micro-batch's share to the gradients. Returns its loss, (), and its predictions."""
        with SampleNoise(batch.seeds), \
                torch.autocast(self.ranks.device.type, self.amp, enabled=self.amp is not None):
            result = self.model(batch.frames, batch.masks, batch.objects, number, batch.slots)
        self.scaler.scale(result["loss"] / self.settings.accumulate).backward()
        return result["loss"].detach(), result["predictions"]

    def _check(self, number: int, loss: float, norm: float, losses: list[float], batches: list[Batch]) -> None:
        """Stop where the mean loss over all ranks is not finite, or the gradient; keep the batches that made it so."""
        if not math.isfinite(loss):
            what, value = "loss", loss
            guilty = [not math.isfinite(own) for own in losses]
        elif not math.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() > LEAST_SCALE):
            what, value, guilty = "gradient", norm, [True] * len(batches)  # any of them
        else:
            return
        name = f"diverged_step_{number + 1:07d}"
        for part in (part for part, at_fault in enumerate(guilty) if at_fault):
            save_batch(self.run / f"{name}_rank_{self.ranks.rank}_part_{part}.pt", batches[part])
        raise TrainingDiverged(f"{self.run}: the {what} of step {number + 1} is {value}; its clips are kept in "
                               f"{self.run / name}_*.pt, the weights before it in the last checkpoint, if there were "
                               f"steps before; {REMEDY}")
