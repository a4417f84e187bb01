"""Prompts to the embeddings that a generation is conditioned on."""

from collections.abc import Callable, Sequence

import torch


def encode_prompts(
    encoder: Callable[[Sequence[str]], torch.Tensor], prompts: Sequence[str], batch_size: int = 8
) -> dict[str, torch.Tensor]:
    """Each distinct prompt's embedding [text_len, text_dim], on the CPU.

    Args:
        encoder: prompts -> [len(prompts), text_len, text_dim].
    """
    distinct = list(dict.fromkeys(prompts))
    embeddings: dict[str, torch.Tensor] = {}
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        embeddings.update(zip(batch, encoder(batch).cpu(), strict=True))
    return embeddings
