"""The three training losses of the retrieval autoencoder (arXiv 2606.02553)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Losses(NamedTuple):
    """Scalars; `delta` and `smooth` already carry their weights, so `total` is the sum of the others."""

    total: Tensor
    recon: Tensor
    delta: Tensor
    smooth: Tensor


def chunk_losses(
    x: Tensor,
    recon: Tensor,
    z: Tensor,
    delta_weight: float = 1.0,
    delta_margin: float = 0.85,
    delta_window: int = 3,
    smooth_weight: float = 1.0,
) -> Losses:
    """Losses of chunks of consecutive latent frames; a weight of 0 leaves its term out.

    Args:
        x: latent frames [B, S, C, H, W].
        recon: their reconstructions, same shape.
        z: their embeddings [B, S, D], as `LatentAE.embed` gives them, not normalised.
    """
    mse = F.mse_loss(recon.float(), x.float())
    z = z.float()
    delta = mse.new_zeros(())
    smooth = mse.new_zeros(())
    if delta_weight:
        delta = delta_weight * window_delta(z, delta_margin, delta_window)
    if smooth_weight:
        smooth = smooth_weight * acceleration(z)
    return Losses(mse + delta + smooth, mse, delta, smooth)


def weighted(losses: Losses, chunks: int) -> Tensor:
    """[5] float64: the number of chunks, then each loss times it; sums of these give averages over chunks."""
    values = torch.stack([torch.ones_like(losses.total), *losses])
    return values.double().detach() * chunks


def window_delta(z: Tensor, margin: float, window: int) -> Tensor:
    """Pushes nearby frames apart until their cosine similarity is at most `margin`.

    For offsets k = 1 .. min(S-1, window): mean of relu(cos(z_t, z_{t-k}) - margin), averaged over k.

    Args:
        z: embeddings [B, S, D].
    """
    terms = []
    for k in range(1, min(z.shape[1] - 1, window) + 1):
        cosine = F.cosine_similarity(z[:, k:], z[:, :-k], dim=-1)
        terms.append(F.relu(cosine - margin).mean())
    if not terms:
        return z.new_zeros(())
    return torch.stack(terms).mean()


def acceleration(z: Tensor) -> Tensor:
    """Keeps the trajectory smooth: mean over t of sqrt(||z_{t+1} - 2 z_t + z_{t-1}||^2 + 1e-8).

    Args:
        z: embeddings [B, S, D]; fewer than 3 frames have no acceleration.
    """
    if z.shape[1] < 3:
        return z.new_zeros(())
    second = z[:, 2:] - 2 * z[:, 1:-1] + z[:, :-2]
    return (second.square().sum(-1) + 1e-8).sqrt().mean()
