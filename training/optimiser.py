"""The optimiser with the official groups, the learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from configs.schema import TrainConfig
from training.muon import MATRICES, Muon

# Names (parts of ours) without weight decay beside every 1-D parameter; relative_value is the official relative_emb_v.
_NO_DECAY = ("absolute_pos_embed", "relative_position_bias_table", "relative_value", "conv_out")


def build_optimiser(network: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what learns, in a group for each part (``encoder``, ``added`` by a family, ``rest``), decayed or not.

    The official code makes a group of each parameter; the numbers are the same. With ``train.optimiser=muon`` (ours)
    the weight matrices of ``rest``, embeddings and depthwise convolutions excepted, are a part of their own.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    added = getattr(network, "added_parts", ())
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            part = "encoder" if name.startswith("encoder.") else "added" if name.startswith(added) else "rest"
            decays = parameter.dim() > 1 and not any(part in name for part in _NO_DECAY)
            if train.optimiser == "muon" and part == "rest" and decays and _is_matrix(name, parameter):
                part = MATRICES
            groups.setdefault((part, decays), []).append(parameter)
    optimiser = Muon if train.optimiser == "muon" else torch.optim.AdamW
    return optimiser([
        {"params": parameters, "part": part, "weight_decay": train.weight_decay if decays else 0.0}
        for (part, decays), parameters in sorted(groups.items())], lr=train.lr)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Not so embeddings (identities, relative positions) and depthwise convolutions: their rows are apart."""
    return not name.startswith("identity.") and "relative" not in name and parameter.shape[1] > 1


def learning_rate(step: int, train: TrainConfig, part: str = "rest") -> float:
    """The learning rate of a step, counted from 0: linear warm-up from ``lr_min``, then polynomial decay to it.

    The encoder gets ``encoder_lr_ratio`` of what lies above ``lr_min``, added parts ``added_lr_ratio``, Muon's matrices
    ``matrix_lr_ratio``.
    """
    warmup = int(train.warmup * train.steps)
    if step < warmup:
        height = step / warmup
    else:
        height = (1 - (step - warmup) / (train.steps - warmup + 1)) ** train.power
    ratio = {"encoder": train.encoder_lr_ratio, "added": train.added_lr_ratio, MATRICES: train.matrix_lr_ratio,
             "rest": 1.0}[part]
    return train.lr_min + (train.lr - train.lr_min) * height * ratio


def set_learning_rate(optimiser: torch.optim.Optimizer, step: int, train: TrainConfig) -> float:
    """Give every group its learning rate for this step; returns that of the groups outside encoder and added parts."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, train, group["part"])
    return learning_rate(step, train)


class Average:
    """Exponential moving average of all that learns; the rest (frozen weights, buffers) is as in the network."""

    def __init__(self, network: nn.Module, train: TrainConfig):
        self.decay = 1 - 1 / max(train.ema * train.steps, 1.0)
        self.network = network
        self.learning = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self.averages = {name: parameter.detach().clone() for name, parameter in self.learning.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step``; early on the average follows more quickly."""
        decay = min(self.decay, (2 + step) / (11 + step))
        values = [parameter.detach() for parameter in self.learning.values()]
        torch._foreach_lerp_(list(self.averages.values()), values, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """A complete state dict of the network with the averages in it."""
        return {**self.network.state_dict(), **self.averages}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, average in self.averages.items():
            average.copy_(tensors[name])
