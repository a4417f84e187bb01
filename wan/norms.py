"""Norms with what lies before and after them, in one pass over memory on a GPU that Triton knows.

Elsewhere, and as what the kernel is held equal to, they are done the plain way.
"""

import torch
from torch import nn
from torch.nn import functional as F

try:
    import triton
    from triton import language as tl
except ImportError:  # a CPU build of PyTorch brings none
    triton = None

NUMBERS = 4096  # that a program of the kernel takes at least


class RMSNorm(nn.RMSNorm):
    """Root mean square norm over the last dimension, of rows that need not lie side by side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not is_fast(x):
            return super().forward(x)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        norm_rows(x, out, self.weight, self.eps)
        return out


class AddNorm(nn.LayerNorm):
    """A sum, which the layer goes on with, and its layer norm."""

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        gate: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x + gate * y, and the norm of that * (1 + scale) + shift.

        Args:
            x, y: [B, T, C].
            gate, shift, scale: [B, F, 1, C], over a frame's tokens; without a gate it is 1, without shift and scale the
                norm's own weight and bias are taken.
        """
        if is_fast(x):
            weight, bias = (self.weight, self.bias) if scale is None else (1 + scale, shift)
            total, out = torch.empty_like(x), torch.empty_like(x)
            norm_rows(x, out, weight, self.eps, bias, y.contiguous(), gate, total)
            return total, out
        total = x + y if gate is None else gated(x, y, gate)
        return total, super().forward(total) if scale is None else modulated(total, self.eps, shift, scale)


def modulated(x: torch.Tensor, eps: float, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The layer norm of x [B, T, C] * (1 + scale) + shift; scale and shift are [B, F, 1, C], over a frame's tokens.

    One scale and shift for all tokens are what a layer norm's own weight and bias are: one pass over x, not three.
    """
    size = x.shape[-1:]
    if shift.numel() == size[0]:
        return F.layer_norm(x, size, 1 + scale.flatten(), shift.flatten(), eps)
    x = F.layer_norm(x, size, eps=eps).unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift, x, 1 + scale).flatten(1, 2)


def gated(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x + gate * y with gate [B, F, 1, C] over the tokens of their frame."""
    frames = (gate.shape[1], -1)
    return torch.addcmul(x.unflatten(1, frames), y.unflatten(1, frames), gate).flatten(1, 2)


def rms_norm_silu_into(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, plus: torch.Tensor | None = None
) -> None:
    """SiLU of the root mean square norm of x [B, ..., C], written to `out`; where it is given, of x + plus [C]."""
    if is_fast(x):
        norm_rows(x, out, weight, eps, silu=True, plus=plus)
    else:
        x = x if plus is None else x + plus
        torch.ops.aten.silu.out(F.rms_norm(x, weight.shape, weight, eps), out=out)


def add_into(out: torch.Tensor, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
    """`out` [..., C] becomes out + x, and plus [C] where it is given."""
    if plus is None:
        return out.add_(x)
    if is_fast(x) and x.is_contiguous() and out.is_contiguous():
        add_rows(out, x, plus)
        return out
    return out.add_(x).add_(plus)


def is_fast(x: torch.Tensor) -> bool:
    """Whether the kernel is to be used: it has no gradient, and a compiler fuses the plain way by itself."""
    if triton is None or x.device.type != "cuda":
        return False
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def norm_rows(
    x: torch.Tensor,
    out: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    bias: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    silu: bool = False,
    plus: torch.Tensor | None = None,
) -> None:
    """One kernel over rows [B, ..., C]: with y, `total` becomes x + gate * y, and `out` its norm; else x's norm.

    It is a layer norm where there is a bias, else one by the root mean square.

    Args:
        weight, bias, gate: [C], or [B, F, 1, C] over the rows of a frame.
        plus: [C], added to x before all else.
    """
    size = x.shape[-1]
    x, out = _rows(x), _rows(out)
    batch, count = x.shape[:2]
    arguments = [x, out, *x.stride()[:2], *out.stride()[:2]]
    for other in (y, total):
        assert other is None or other.is_contiguous()
        arguments.append(x if other is None else other)
    for vector in (weight, bias, gate):
        vector = weight if vector is None else vector
        arguments += [vector, *_steps(vector, count)]
    block = triton.next_power_of_2(size)
    rows = max(1, NUMBERS // block)
    _norm_rows[(triton.cdiv(count, rows), batch)](
        *arguments, weight if plus is None else plus, count, eps, SIZE=size, BLOCK=block, ROWS=rows,
        IS_SUM=y is not None, IS_GATED=gate is not None, IS_LAYER_NORM=bias is not None, IS_SILU=silu,
        HAS_PLUS=plus is not None,
    )  # fmt: skip


def add_rows(out: torch.Tensor, x: torch.Tensor, plus: torch.Tensor) -> None:
    """One kernel: `out` becomes out + x + plus; out and x [..., C] lie without gaps, plus is [C]."""
    count = out.numel()
    _add_rows[(triton.cdiv(count, NUMBERS),)](out, x, plus, count, SIZE=len(plus), BLOCK=NUMBERS)


def _steps(vector: torch.Tensor, count: int) -> tuple[int, int, int]:
    """How far a vector [C] or [B, F, 1, C] is from sample to sample and from frame to frame, and a frame's rows."""
    if vector.dim() == 1:
        return 0, 0, count
    samples, frames = vector.shape[:2]
    return vector.stride(0) * (samples > 1), vector.stride(1) * (frames > 1), -(-count // frames)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[B, ..., C] as [B, rows, C] in the same memory."""
    assert x.stride(-1) == 1
    return x if x.dim() == 3 else x.view(len(x), -1, x.shape[-1])


if triton is not None:

    @triton.jit
    def _of_frames(vector, sample_stride, frame_stride, frame_rows, sample, row, channel, inside):
        """A vector for each row, that of its sample and frame."""
        place = sample * sample_stride + (row // frame_rows)[:, None] * frame_stride + channel[None, :]
        return tl.load(vector + place, mask=inside, other=0.0).to(tl.float32)

    @triton.jit
    def _norm_rows(
        x, out, x_sample, x_row, out_sample, out_row, y, total,
        weight, weight_sample, weight_frame, weight_rows,
        bias, bias_sample, bias_frame, bias_rows,
        gate, gate_sample, gate_frame, gate_rows,
        plus, count, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
        IS_SUM: tl.constexpr, IS_GATED: tl.constexpr, IS_LAYER_NORM: tl.constexpr, IS_SILU: tl.constexpr,
        HAS_PLUS: tl.constexpr,
    ):  # fmt: skip
        """A program takes ROWS rows of one sample; numbers are float32 within."""
        row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        sample = tl.program_id(1).to(tl.int64)
        channel = tl.arange(0, BLOCK)
        inside = (row < count)[:, None] & (channel < SIZE)[None, :]
        a = tl.load(x + sample * x_sample + row[:, None] * x_row + channel[None, :], mask=inside, other=0.0)
        kept = a.to(tl.float32)
        if HAS_PLUS:
            kept += tl.load(plus + channel, mask=channel < SIZE, other=0.0).to(tl.float32)[None, :]
        if IS_SUM:
            place = (sample * count + row[:, None]) * SIZE + channel[None, :]
            added = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
            if IS_GATED:
                added *= _of_frames(gate, gate_sample, gate_frame, gate_rows, sample, row, channel, inside)
            rounded = (kept + added).to(a.dtype)
            tl.store(total + place, rounded, mask=inside)
            kept = rounded.to(tl.float32)
        if IS_LAYER_NORM:
            kept = tl.where(inside, kept - (tl.sum(kept, 1) / SIZE)[:, None], 0.0)
        kept *= tl.rsqrt(tl.sum(kept * kept, 1) / SIZE + eps)[:, None]
        kept *= _of_frames(weight, weight_sample, weight_frame, weight_rows, sample, row, channel, inside)
        if IS_LAYER_NORM:
            kept += _of_frames(bias, bias_sample, bias_frame, bias_rows, sample, row, channel, inside)
        if IS_SILU:
            kept *= tl.sigmoid(kept)
        place = out + sample * out_sample + row[:, None] * out_row + channel[None, :]
        tl.store(place, kept.to(a.dtype), mask=inside)

    @triton.jit
    def _add_rows(out, x, plus, count, SIZE: tl.constexpr, BLOCK: tl.constexpr):
        """A program takes BLOCK numbers."""
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = place < count
        a = tl.load(out + place, mask=inside, other=0.0)
        total = a.to(tl.float32) + tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(plus + place % SIZE, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, total.to(a.dtype), mask=inside)
