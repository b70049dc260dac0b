"""Objects between the user and the network: ids of the data set, indices 1..N, and groups of at most ten."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from models.identity import IDENTITIES

VOID = 255  # pixels that belong to nothing


class ObjectIds:
    """Translates the user's ids to indices 1..N in order of appearance, and back.

    Within a frame ids are numbered in ascending order. The only place where the two meet.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def admit(self, labels: Tensor) -> Tensor:
        """Number the ids of a label map that are new; return the map in indices. labels: (H, W) uint8; 255 becomes 0.

        This looks at the values on the host: it happens where the user gives masks, not at every frame.
        """
        present = [value for value in labels.unique().tolist() if value not in (0, VOID)]
        self.ids += [value for value in present if value not in self.ids]
        if len(self.ids) > VOID - 1:
            raise UserError(f"masks: {len(self.ids)} objects; label maps of 8 bits hold at most 254")
        table = torch.zeros(256, dtype=torch.uint8)
        for index, value in enumerate(self.ids, start=1):
            table[value] = index
        return table.to(labels.device)[labels.long()]

    def table(self, device: torch.device) -> Tensor:
        """(256,) uint8: the user's id of each index."""
        table = torch.zeros(256, dtype=torch.uint8)
        table[1 : 1 + len(self.ids)] = torch.tensor(self.ids, dtype=torch.uint8)
        return table.to(device)


def group_sizes(objects: int) -> list[int]:
    """Objects in each group: ten in all but the last."""
    groups = max(1, math.ceil(objects / IDENTITIES))
    return [min(IDENTITIES, objects - IDENTITIES * group) for group in range(groups)]


def split_labels(labels: Tensor, groups: int) -> list[Tensor]:
    """A label map of indices 1..N to one map of indices 1..10 a group; (.., H, W) uint8."""
    if groups == 1:
        return [labels]
    index = labels.int()
    parts = []
    for group in range(groups):
        own = index - IDENTITIES * group
        parts.append(torch.where((own >= 1) & (own <= IDENTITIES), own, 0).to(labels.dtype))
    return parts


def merge_groups(logits: list[Tensor]) -> Tensor:
    """Probabilities of all objects from the logits of their groups (facts: aot-benchmark, aot_engine.py, soft_logit).

    Several groups: the background is the product of their backgrounds, all probabilities are clamped to
    [1e-5, 1 - 1e-5] and pass a second softmax as logits; a group's unused slots take part, as in the official code.

    Args:
        logits: (B, 1 + n_g, H, W) of each group, at output size.
    Returns:
        (B, 1 + n, H, W) for one group, (B, 1 + 10 groups, H, W) for several; sums to 1 over dimension 1.
    """
    if len(logits) == 1:
        return logits[0].softmax(1)
    parts = [F.pad(group.softmax(1), (0, 0, 0, 0, 0, 1 + IDENTITIES - group.shape[1])) for group in logits]
    background = torch.stack([part[:, :1] for part in parts]).prod(0)
    merged = torch.cat([background, *(part[:, 1:] for part in parts)], 1).clamp(1e-5, 1 - 1e-5)
    return torch.logit(merged).softmax(1)
