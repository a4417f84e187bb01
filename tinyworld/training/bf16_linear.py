"""Faster training on CPUs with bfloat16 arithmetic: matrix products in it, everything else in float32.

Autocast would run attention in bfloat16 too, whose backward pass takes twice the time of float32's there.
"""

import torch
from torch import nn
from torch.nn import functional


def bf16_is_fast(device: torch.device) -> bool:
    """Whether to compute in bfloat16 there: a CPU with AVX2 alone takes up to 25 times as long as in float32."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("NO AVX", "DEFAULT", "AVX2")


class Bf16Linear(nn.Linear):
    """`nn.Linear` with float32 weights, input and output whose products are computed in bfloat16."""

    @classmethod
    def of(cls, layer: nn.Linear) -> "Bf16Linear":
        """The same layer, with the same parameters."""
        made = cls(layer.in_features, layer.out_features, device="meta")
        made.weight = layer.weight
        made.bias = layer.bias
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Product.apply(x, self.weight, self.bias)


def use_bf16_matmul(model: nn.Module) -> None:
    """Put a `Bf16Linear` in place of every linear layer within `model`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Bf16Linear.of(child))


class _Product(torch.autograd.Function):
    """x w^T + b; what is kept for the backward pass takes half the memory, too."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = x.bfloat16()
        w = w.bfloat16()
        ctx.save_for_backward(x, w)
        return functional.linear(x, w, b.bfloat16()).float()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, w = ctx.saved_tensors
        grad = grad.bfloat16()
        flat = grad.flatten(0, -2)
        return (grad @ w).float(), (flat.T @ x.flatten(0, -2)).float(), flat.float().sum(0)
