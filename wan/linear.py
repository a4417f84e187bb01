"""Linears, and the kernels that compute them where no gradients are asked for."""

import torch
from torch import nn
from torch.nn import functional as F

# PyTorch leaves products in float32 to MKL; those of oneDNN, which are faster, it keeps for its compiler
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


class Linear(nn.Linear):
    """`nn.Linear`, by the fastest kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class FeedForward(nn.Sequential):
    """Linear, GELU in its tanh form, linear.

    Attributes:
        fused: whether the first linear is a plain one, which can be computed together with the GELU.
    """

    fused = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.fused:
            return super().forward(x)
        first, _, last = self
        return last(linear_gelu(x, first.weight, first.bias))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., in] times weight^T, plus bias: [..., out]."""
    if is_onednn(x, weight):
        return ONEDNN(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The tanh form of GELU of what `linear` gives."""
    if is_onednn(x, weight):
        return ONEDNN(x, weight, bias, "gelu", [], "tanh")
    if x.device.type == "cuda" and not torch.is_grad_enabled():
        # its GELU is the tanh form on CUDA, and only there
        y = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
        return y.unflatten(0, x.shape[:-1])
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def is_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN computes this product: a plain one in float32 on a CPU, without gradients, not compiled."""
    if ONEDNN is None or x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return x.dtype == weight.dtype == torch.float32 and type(weight.data) is torch.Tensor


def is_plain(linear: nn.Module) -> bool:
    """Whether a linear is no more than its weight and bias."""
    return type(linear) is Linear and type(linear.weight.data) is torch.Tensor
