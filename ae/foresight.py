"""Foresight: the usefulness encoder learns which frame of the past is most like what came next.

Neither a backbone nor measured gains are needed, so every block of every clip teaches: what came next is there to
compare with. In a rollout it is not, and the query has to tell it from the latest frames. Nothing is worth what a
frame of the past is worth on average.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ae.usefulness import UsefulnessEncoder
from ae.usefulness_train import EncoderSettings, open_frames, split_files
from utils.errors import UserError
from utils.settings import setting

BLOCK = 3  # latent frames


@dataclass(frozen=True, kw_only=True)
class ForesightSettings(EncoderSettings):
    """Training of the usefulness encoder by what came next"""

    objective: str = setting("foresight", "what is trained", choices=("foresight",))
    frames: int = setting(60, "latent frames of a clip that a step sees, at a random place of it", at_least=1)
    queries: int = setting(12, "blocks of a clip that a step asks for", at_least=1)
    temperature: float = setting(
        0.08, "difference in mean square error of pooled latents that counts as one step", above=0, at_most=100
    )
    noise: float = setting(0.35, "deviation of the noise on the latents, at most", at_least=0, at_most=10)
    own: float = setting(0.5, "share of the blocks that may also choose their own frames", at_least=0, at_most=1)
    others: int = setting(8, "of other clips every so many frames are to be told apart", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 2 * self.past + BLOCK:
            raise UserError(
                f"frames is {self.frames}; with past {self.past} it must be {2 * self.past + BLOCK} or more"
            )


@dataclass(frozen=True)
class Clips:
    """A step's clips, and for which blocks it asks.

    Attributes:
        latents: [B, F, C, H, W].
        starts: [B, Q] first frames of blocks.
        own: [B, Q] which of them may choose their own frames.
        noise: like latents.
    """

    latents: Tensor
    starts: Tensor
    own: Tensor
    noise: Tensor


class Foresight:
    """Objective `foresight`, see `ae.usefulness_train.Objective`."""

    def __init__(self, settings: ForesightSettings) -> None:
        self.settings = settings
        self.kept, self.held = split_files(settings)
        self.files = sorted(path.name for path in self.kept)
        self.latents = {}
        for path in (*self.kept, *self.held):
            self.latents[path] = open_frames(path, settings)
            if len(self.latents[path]) < settings.frames:
                raise UserError(
                    f"latent file {path} has {len(self.latents[path])} frames and frames is {settings.frames}; "
                    "make longer clips, or set a lower frames="
                )

    def epoch(self, number: int) -> Iterator[Clips]:
        """See `Objective`."""
        rng = np.random.default_rng([self.settings.seed, number])
        yield from self._batches([self.kept[place] for place in rng.permutation(len(self.kept))], rng)

    def held_out(self) -> Iterator[Clips]:
        """See `Objective`."""
        yield from self._batches(self.held or self.kept, np.random.default_rng([self.settings.seed]))

    def loss(self, model: UsefulnessEncoder, batch: Clips) -> Tensor:
        """Cross-entropy of the predicted choice against one that follows the likeness to the block."""
        device = model.none.device
        past = self.settings.past
        x = batch.latents.to(device)
        starts = batch.starts.to(device)
        noisy = x + batch.noise.to(device)
        keys = model.keys(noisy)  # [B, F, D]
        sample = torch.arange(len(x), device=device)[:, None, None]
        recent = noisy[sample, starts[..., None] + torch.arange(-past, 0, device=device)]
        query = model.query(recent.flatten(0, 1)).unflatten(0, starts.shape)  # [B, Q, D]

        frame = torch.arange(x.shape[1], device=device)
        start = starts[..., None]
        is_own = (frame >= start) & (frame < start + BLOCK)
        is_past = frame < start - past
        choosable = is_past | (is_own & batch.own.to(device)[..., None])  # [B, Q, F]
        apart = unlikeness(x)
        to_block = apart[sample, start + torch.arange(BLOCK, device=device)].amin(2)  # [B, Q, F]
        of_nothing = (to_block * is_past).sum(2, keepdim=True) / is_past.sum(2, keepdim=True)
        wanted = torch.cat([to_block.masked_fill(~choosable, torch.inf), of_nothing], 2) / -self.settings.temperature

        query = model.sharpness.exp() * query
        own_clip = torch.einsum("b q d, b f d -> b q f", query, keys).masked_fill(~choosable, -torch.inf)
        nothing = (query @ model.nothing).unsqueeze(2)
        elsewhere = torch.einsum("b q d, c f d -> b q c f", query, keys[:, :: self.settings.others])
        same_clip = torch.eye(len(x), dtype=torch.bool, device=device)[:, None, :, None]
        elsewhere = elsewhere.masked_fill(same_clip, -torch.inf).flatten(2)
        logits = torch.cat([own_clip, nothing, elsewhere], 2).log_softmax(2)[..., : wanted.shape[2]]
        surprise = -logits.masked_fill(logits == -torch.inf, 0.0)
        return (wanted.softmax(2) * surprise).sum(2).mean()

    def _batches(self, paths: list[Path], rng: np.random.Generator) -> Iterator[Clips]:
        settings = self.settings
        for first in range(0, len(paths), settings.batch_size):
            clips = []
            for path in paths[first : first + settings.batch_size]:
                whole = self.latents[path]
                begin = int(rng.integers(0, len(whole) - settings.frames + 1))
                clips.append(whole[begin : begin + settings.frames].float())
            x = torch.stack(clips)
            shape = (len(x), settings.queries)
            starts = rng.integers(2 * settings.past, settings.frames - BLOCK + 1, shape)
            strength = torch.from_numpy(rng.uniform(0, settings.noise, len(x))).float()
            noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
            noise = noise * rearrange(strength, "b -> b 1 1 1 1")
            yield Clips(x, torch.from_numpy(starts), torch.from_numpy(rng.random(shape) < settings.own), noise)


def unlikeness(x: Tensor) -> Tensor:
    """Mean square error of all pairs of latent frames [B, F, C, H, W], pooled by 2 x 2: [B, F, F].

    Pooled, since a place that returns returns by a part of a latent's width beside where it was.
    """
    pooled = F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2]).flatten(2)
    return torch.cdist(pooled, pooled).square() / pooled.shape[2]
