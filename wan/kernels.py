"""Queries, keys and values: rotated and put where attention reads them, in one pass over memory.

On a GPU that Triton knows this is one kernel; elsewhere, and as what the kernel is held equal to, the plain way.
"""

from collections.abc import Sequence

import torch

from wan.rope import rotate, rotate_into

try:
    import triton
    from triton import language as tl
except ImportError:  # a CPU build of PyTorch brings none
    triton = None

TOKENS = 32  # of a program of the kernel


def take_own(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    context: torch.Tensor,
    kept: Sequence[tuple[torch.Tensor, int]],
    layer: int,
    start: int,
) -> torch.Tensor:
    """Rotate q, and write rotated keys and values into the context, unrotated ones into frames that are kept.

    Args:
        q, k, v: [B, T, heads, head_dim], unrotated.
        table: their rotation.
        context: keys and values [2, layers, B, heads, room, head_dim].
        kept: frames [B, 2, layers, tokens, heads, head_dim], each with where among the T tokens it begins.
        start: where in the context's room the T tokens begin.

    Returns:
        q rotated, [B, T, heads, head_dim]
    """
    for frame, first in kept:
        tokens = slice(first, first + frame.shape[3])
        frame[:, 0, layer] = k[:, tokens]
        frame[:, 1, layer] = v[:, tokens]
    keys, values = context[:, layer, :, :, start : start + k.shape[1]].transpose(2, 3)  # [B, T, heads, head_dim] each
    if is_fast(q):
        return rotate_write(q, k, v, table, keys, values)
    put(k, v, table, keys, values)
    return rotate(q, table)


def put(k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """`keys` and `values` become k rotated, and v; all [B, T, heads, head_dim], the table is one for all of B."""
    if is_fast(k):
        rotate_write(None, k, v, table, keys, values)
    else:
        rotate_into(keys, k, table)
        values.copy_(v)


def is_fast(x: torch.Tensor) -> bool:
    """Whether the kernel takes such tensors [..., head_dim]."""
    head_dim = x.shape[-1]
    return triton is not None and x.device.type == "cuda" and head_dim & (head_dim - 1) == 0


def rotate_write(
    q: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor | None:
    """One kernel: `keys` and `values` [B, T, heads, head_dim] become k rotated, and v; returns q, if any, rotated."""
    batch, tokens, heads, head_dim = k.shape
    has_q = q is not None
    q = q if has_q else k
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if has_q else keys
    strides = []
    for x in (q, k, v, out, keys, values):
        assert x.stride(-1) == 1
        strides += x.stride()[:3]
    grid = (triton.cdiv(tokens, TOKENS), heads, batch)
    _rotate_write[grid](
        q, k, v, torch.view_as_real(table), out, keys, values, *strides, tokens,
        HAS_Q=has_q, HEAD_DIM=head_dim, TOKENS=TOKENS,
    )  # fmt: skip
    return out if has_q else None


if triton is not None:

    @triton.jit
    def _turned(x, cos, sin, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr):
        """Pairs of channels of x [TOKENS, HEAD_DIM] rotated, in float32."""
        even, odd = tl.split(tl.reshape(x.to(tl.float32), (TOKENS, HEAD_DIM // 2, 2)))
        turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
        return tl.reshape(turned, (TOKENS, HEAD_DIM))

    @triton.jit
    def _rotate_write(
        q, k, v, table, q_out, k_out, v_out,
        q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
        qo_batch, qo_token, qo_head, ko_batch, ko_token, ko_head, vo_batch, vo_token, vo_head,
        tokens, HAS_Q: tl.constexpr, HEAD_DIM: tl.constexpr, TOKENS: tl.constexpr,
    ):  # fmt: skip
        """A program takes TOKENS tokens of one head of one sample."""
        token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
        head = tl.program_id(1).to(tl.int64)
        sample = tl.program_id(2).to(tl.int64)
        channel = tl.arange(0, HEAD_DIM)[None, :]
        inside = (token < tokens)[:, None]
        token = token[:, None]
        turn = tl.load(table + token * HEAD_DIM + channel, mask=inside, other=0.0)
        cos, sin = tl.split(tl.reshape(turn, (TOKENS, HEAD_DIM // 2, 2)))
        if HAS_Q:
            x = tl.load(q + sample * q_batch + token * q_token + head * q_head + channel, mask=inside, other=0.0)
            place = q_out + sample * qo_batch + token * qo_token + head * qo_head + channel
            tl.store(place, _turned(x, cos, sin, TOKENS, HEAD_DIM).to(x.dtype), mask=inside)
        x = tl.load(k + sample * k_batch + token * k_token + head * k_head + channel, mask=inside, other=0.0)
        place = k_out + sample * ko_batch + token * ko_token + head * ko_head + channel
        tl.store(place, _turned(x, cos, sin, TOKENS, HEAD_DIM).to(x.dtype), mask=inside)
        x = tl.load(v + sample * v_batch + token * v_token + head * v_head + channel, mask=inside, other=0.0)
        place = v_out + sample * vo_batch + token * vo_token + head * vo_head + channel
        tl.store(place, x, mask=inside)
