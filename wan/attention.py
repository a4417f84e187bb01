"""The one attention function, for which diffusers' dispatch chooses the kernel; and attention in a context."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn

from utils.errors import UserError, did_you_mean

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

NATIVE = AttentionBackendName.NATIVE  # PyTorch's scaled_dot_product_attention


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    backend: AttentionBackendName = NATIVE,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention.

    Args:
        q: [B, T, heads, head_dim]
        k, v: [B, S, heads, head_dim]
        bias: added to the logits, [B, heads, T, S] or 1 in place of any; for `NATIVE` alone.

    Returns:
        [B, T, heads, head_dim]
    """
    if bias is not None:
        bias = bias.to(q.dtype)
    return dispatch_attention_fn(q, k, v, attn_mask=bias, backend=backend)


def find_backend(name: str) -> AttentionBackendName:
    """A backend by its name in diffusers; refuses one that is unknown or not installed."""
    names = [backend.value for backend in AttentionBackendName]
    if name not in names:
        raise UserError(f"attention_backend '{name}' is not one of {', '.join(names)}{did_you_mean(name, names)}")
    try:
        with attention_backend(name):
            return AttentionBackendName(name)
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"attention_backend '{name}' cannot be used: {reason}; 'native' runs everywhere") from error


_seat: ContextVar[Attend] = ContextVar("seat")


@contextmanager
def seat(attend: Attend) -> Iterator[None]:
    """Within it, `attend_here` is `attend`: it maps q, k, v [B, T, heads, head_dim] to what is attended, of q's shape.

    A context is no tensor, and what it does for one layer differs from what it does for the next. Handed through a
    layer's arguments, it would be a part of the compiled graph, which would then serve this one case.
    """
    before = _seat.set(attend)
    try:
        yield
    finally:
        _seat.reset(before)


def attend_here(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What the present `seat` says; to `torch.compile` it is one operation, which it does not look into."""
    if torch.compiler.is_compiling():
        return _attend_here(q, k, v)
    return _seat.get()(q, k, v)


@torch.library.custom_op("wan::attend_here", mutates_args=())
def _attend_here(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _seat.get()(q, k, v).contiguous()


@_attend_here.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)
