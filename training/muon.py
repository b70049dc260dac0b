"""Muon: AdamW, but weight matrices move along the orthogonalised momentum of their gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.precision import computes_in

MATRICES = "matrices"  # the part of the groups whose parameters are orthogonalised


class Muon(torch.optim.AdamW):
    """AdamW for all groups but those of the part ``matrices``, which take Muon's step (K. Jordan, "Muon", 2024).

    Every singular direction of a matrix's momentum gets the same length, so that rare directions are learned as fast as
    common ones; a step's root mean square is 0.2 lr, about AdamW's (Moonlight, arXiv 2502.16982, section 2.2).
    Convolutions count as matrices (outputs, inputs * height * width). torch.optim.Muon takes no convolutions, nor other
    groups beside the matrices, and is missing before torch 2.9.
    """

    momentum = 0.95

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every group. The matrices' gradients are used up."""
        for group in self.param_groups:
            if group["part"] == MATRICES:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, parameter.grad, group["lr"], group["weight_decay"])
                        parameter.grad = None  # AdamW passes over it
        return super().step(closure)

    def _move(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # AdamW's loading of a state wants one
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(gradient, 1 - self.momentum)
        direction = orthogonalise(gradient.lerp(average, self.momentum).flatten(1))  # Nesterov's; (rows, columns)
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(direction.view_as(parameter), alpha=-0.2 * lr * max(direction.shape) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """U V' of a matrix U S V', roughly: five Newton-Schulz steps bring S to between 0.7 and 1.2.

    The quintic's coefficients are Jordan's: steepest at 0, at the price of not quite converging. In bfloat16, where the
    device has it.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x.bfloat16() if computes_in(torch.bfloat16, matrix.device) else x.float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.T if tall else x).to(matrix.dtype)
