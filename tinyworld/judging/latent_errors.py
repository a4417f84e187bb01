"""How far sampled latents are from the true ones, over the whole view and where the camera uncovers new columns."""

import numpy as np
import torch

from tinyworld.world.scene import LANE, VIEW

CELL = 8  # pixels of a latent's column, or row


def latent_errors(
    made: dict[int, torch.Tensor], truth: torch.Tensor, camera: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean square error [B] of the samples over the whole view, and over the columns that their block uncovers.

    Of the columns, the rows above the subject's lane count, as where it runs is no matter of memory. A column
    is new when at least half of it was out of view in the frame before the block; NaN for a clip in which none is.

    Args:
        made: a block's first frame -> its sample [B, F of the block, C, h, w].
        truth: [B, F, C, h, w].
        camera: [B, F] pixels.
    """
    errors, new_columns = [], []
    for start, latents in made.items():
        stop = start + latents.shape[1]
        difference = latents - truth[:, start:stop].to(latents.device)
        errors.append(difference.square().mean(2).cpu().numpy())
        new_columns.append(uncovered(camera[:, start:stop], camera[:, start - 1]))
    error = np.concatenate(errors, 1)  # [B, F, rows, columns]
    new = np.concatenate(new_columns, 1)  # [B, F, columns]
    above_the_lane = error[:, :, : LANE // CELL].mean(2)
    with np.errstate(invalid="ignore"):
        of_new_columns = (above_the_lane * new).sum((1, 2)) / new.sum((1, 2))
    return error.mean((1, 2, 3)), of_new_columns


def uncovered(camera: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, F, columns] whether each latent column of the views at `camera` [B, F] lies outside that at `before` [B]."""
    middles = camera[..., None] + CELL * np.arange(VIEW // CELL) + CELL / 2
    return np.abs(middles - before[:, None, None] - VIEW / 2) >= VIEW / 2
