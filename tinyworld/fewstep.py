"""What makes few steps good: training on contexts that carry the model's own errors.

In a rollout every block follows blocks that the model made, and its errors differ from the Gaussian
noise of teacher forcing: detail is missing, edges are soft, colours are a little off. So part of the
context is replaced by what the model itself makes of noised frames in one step, while what it has to
predict stays the truth: it learns to continue from its own frames and to repair them.
"""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from einops import repeat

from tinyworld.backbone import Backbone, Batch, blurred, draw_batch, draw_noisy, forward, optimise, teacher_forcing_loss
from tinyworld.context import BLOCK
from tinyworld.corpus import Corpus
from tinyworld.settings import BackboneSettings, FewStepSettings
from tinyworld.training import digest, generator, told


def train(
    backbone: Backbone,
    few: FewStepSettings,
    settings: BackboneSettings,
    corpora: list[Corpus],
    folder: Path,
    seed: int,
) -> Backbone:
    """Go on with a trained backbone; resumes from `folder`. Returns the averaged weights."""
    about = {"seed": seed, **told("fewstep", few), **told("backbone", settings)}
    about["latents"] = digest(corpus.latents for corpus in corpora)
    about["backbone"] = digest(backbone.state_dict().values())
    backbone.requires_grad_(True)
    shared = {field.name for field in fields(few)} & {field.name for field in fields(settings)}
    settings = replace(settings, **{name: getattr(few, name) for name in shared})

    def loss(step: int) -> tuple[str, torch.Tensor]:
        rng = generator(seed, 30, step)
        kind, batch = draw_batch(settings, corpora, rng)
        if kind == "start":  # mostly blocks without any context: what matters is the caption
            context = blurred(batch.clean, settings, rng)
        else:
            context = own_context(backbone, few, settings, batch, rng)
        return kind, teacher_forcing_loss(backbone, settings, batch, context, rng, few.guidance)

    return optimise(backbone, settings, few.steps, lambda step: 1 - step / few.steps, loss, folder / "fewstep", about)


@torch.no_grad()
def own_context(
    backbone: Backbone, few: FewStepSettings, settings: BackboneSettings, batch: Batch, rng: np.random.Generator
) -> torch.Tensor:
    """The batch's frames [B, F, C, h, w], a share of the blocks as the model makes them from noised ones."""
    context = blurred(batch.clean, settings, rng)
    noisy, sigma, _ = draw_noisy(batch.clean, 1, 0.0, rng, few.lowest)
    made = noisy - sigma * forward(backbone, batch.captions, context, noisy, sigma, batch.plans)
    own = torch.from_numpy(rng.random((len(context), context.shape[1] // BLOCK)) < few.own)
    return torch.where(repeat(own, "b s -> b (s f) 1 1 1", f=BLOCK).to(made.device), made[:, 0], context)
