"""Floating-point operations of the transformer; multiply and add count as two."""

from wan.params import WanParams


def block_flops(params: WanParams, tokens: int, window: int, steps: int) -> int:
    """Those of one block's linear layers and attention, in so many denoising steps and the commit.

    Args:
        tokens: of a latent frame.
        window: latent frames that a block attends to, its own included.
    """
    q, seen = 3 * tokens, window * tokens
    return steps * forward_flops(params, q, seen) + forward_flops(params, q, seen, leaves=True)


def forward_flops(params: WanParams, q: int, seen: int, leaves: bool = False) -> int:
    """Those of a forward of q tokens that attend to so many tokens, their own included.

    Args:
        leaves: it only leaves keys and values: of the last layer, only the projections to q, k and v are made.
    """
    attention = 4 * q * (seen + params.text_len) * params.dim
    layer = linear_flops(params, q) + attention
    if leaves:
        return (params.num_layers - 1) * layer + 6 * q * params.dim**2
    return params.num_layers * layer


def linear_flops(params: WanParams, q: int) -> int:
    """Those of one layer's matrix products for q tokens; the text's keys and values are made once a prompt."""
    return 2 * q * (6 * params.dim**2 + 2 * params.dim * params.ffn_dim)
