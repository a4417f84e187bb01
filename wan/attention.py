"""The one attention function; diffusers' dispatch chooses the kernel."""

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn

from utils.errors import UserError, did_you_mean

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
