"""Faster training on CPUs with bfloat16 arithmetic: matrix products in it, everything else in float32.

Autocast would run attention in bfloat16 too, whose backward pass takes twice the time of float32's there.
"""

import torch
from torch import nn
from torch.nn import functional


class MixedLinear(nn.Linear):
    """`nn.Linear` with float32 weights, input and output whose products are computed in bfloat16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Product.apply(x, self.weight, self.bias)


def mix(model: nn.Module) -> None:
    """Turn every linear layer of `model` into a `MixedLinear`, its weights left as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = MixedLinear


class _Product(torch.autograd.Function):
    """x w^T + b; what is kept for the backward pass takes half the memory, too."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x, w = x.bfloat16(), w.bfloat16()
        ctx.save_for_backward(x, w)
        return functional.linear(x, w, b.bfloat16()).float()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, w = ctx.saved_tensors
        grad = grad.bfloat16()
        flat = grad.flatten(0, -2)
        return (grad @ w).float(), (flat.T @ x.flatten(0, -2)).float(), flat.float().sum(0)
