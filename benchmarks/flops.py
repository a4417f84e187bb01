"""Floating-point operations of the transformer; multiply and add count as two."""

from wan.params import WanParams


def block_flops(params: WanParams, tokens: int, window: int, forwards: int) -> float:
    """Those of one block's linear layers and attention.

    Args:
        tokens: of a latent frame.
        window: latent frames that a block attends to, its own included.
    """
    q, kv = 3 * tokens, window * tokens
    attention = 4 * q * (kv + params.text_len) * params.dim
    return forwards * params.num_layers * (linear_flops(params, q) + attention)


def linear_flops(params: WanParams, q: int) -> int:
    """Those of one layer's matrix products for q tokens; the text's keys and values are made once a prompt."""
    return 2 * q * (6 * params.dim**2 + 2 * params.dim * params.ffn_dim)
