"""Linears that multiply in FP8: every row of weights and of activations has a scale of its own."""

import torch
from torch import nn
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
MULTIPLE = 16  # of both sizes of the weights, as GPUs ask for
CAPABILITY = (8, 9)  # of the first GPUs that multiply in FP8


class Fp8Linear(nn.Module):
    """Stands for a linear; its activations are scaled by the largest number of each token.

    A GPU multiplies in FP8 and adds up in float32. A CPU, which has no such products, computes the same from the same
    rounded numbers in float32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = scaled(linear.weight.data)
        self.register_buffer("weight", weight)  # [out, in]
        self.register_buffer("scale", scale.t().contiguous())  # [1, out]
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, scale = scaled(x.flatten(0, -2))
        if x.device.type == "cuda":
            y = torch._scaled_mm(
                rows, self.weight.t(), scale, self.scale, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        else:
            y = F.linear(rows.float(), self.weight.float()) * scale * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


def scaled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [N, C] in FP8, and the scale that each was divided by, [N, 1] in float32."""
    largest = x.abs().amax(1, keepdim=True).float()
    scale = largest.clamp(min=1e-12) / torch.finfo(FP8).max
    return (x / scale).to(FP8), scale


def multiply_in_fp8(module: nn.Module) -> None:
    """Replace the linears within a module whose sizes allow it; those of a LoRA that is not merged stay."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) and not (child.in_features % MULTIPLE or child.out_features % MULTIPLE):
            setattr(module, name, Fp8Linear(child))
        elif not name.startswith("lora_"):
            multiply_in_fp8(child)
