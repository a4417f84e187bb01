"""What makes few steps good: training on contexts that carry the model's own errors.

In a rollout every block follows blocks that the model made, and its errors differ from the Gaussian
noise of teacher forcing: detail is missing, edges are soft, colours are a little off. So part of the
context is replaced by what the model itself makes of noised frames in one step, while what it has to
predict stays the truth: it learns to continue from its own frames and to repair them.

In a rollout, too, what was seen last is an invented continuation where a place was forgotten, and only memory
holds the true one. So in a share of the sequences all that is late is invented, and all before it true.
"""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import repeat

from pipeline.context import ContextPolicy
from tinyworld.training.backbone import (
    Backbone,
    Batch,
    blurred,
    contexts_of,
    draw_batch,
    draw_noisy,
    forward,
    teacher_forcing_loss,
)
from tinyworld.training.corpus import Corpus
from tinyworld.training.optimise import optimise
from tinyworld.training.settings import BackboneSettings, FewStepSettings
from tinyworld.training.state import digest, generator, normal, under
from tinyworld.training.teacher_forcing import BlockPlan
from tinyworld.training.workers import made_ahead

HALFWAY = 5 * 0.5 / (1 + 4 * 0.5)  # the noise level in the middle of the sampler's schedule


def train(
    backbone: Backbone,
    few: FewStepSettings,
    settings: BackboneSettings,
    policy: ContextPolicy,
    corpora: list[Corpus],
    folder: Path,
    seed: int,
    device: torch.device,
    workers: int = 0,
) -> Backbone:
    """Go on with a trained backbone on the device; resumes from `folder`. Returns the averaged weights."""
    about = {
        "seed": seed,
        **under("fewstep", few),
        **under("context", policy),
        **under("backbone", settings),
        "latents": digest(corpus.latents for corpus in corpora),
        "backbone": digest(backbone.state_dict().values()),
    }
    settings = few_step_settings(few, settings)

    def draw(step: int) -> tuple[np.random.Generator, str, Batch]:
        rng = generator(seed, 30, step)
        return rng, *draw_batch(settings, policy, corpora, rng)

    def loss(drawn: tuple[np.random.Generator, str, Batch]) -> tuple[str, torch.Tensor]:
        rng, kind, batch = drawn
        batch = batch.to(device)
        if kind == "start":  # mostly blocks without any context: what matters is the caption
            context = blurred(batch.clean, batch.block, settings.context_noise, rng)
        else:
            context = own_context(backbone, few, settings, batch, rng)
            if rng.random() < few.invented:
                context = invented_context(backbone, settings, batch, context, rng)
        taught = batch.recalls() if rng.random() < few.recall_only else None
        return kind, teacher_forcing_loss(backbone, settings, batch, context, rng, few.guidance, taught)

    def rate(step: int) -> float:
        return 1 - step / few.steps

    batches = partial(made_ahead, draw, workers=workers)
    return optimise(backbone, settings, few.steps, rate, batches, loss, folder / "fewstep", about)


def few_step_settings(few: FewStepSettings, settings: BackboneSettings) -> BackboneSettings:
    """The backbone's settings, with those of the few-step training where both have one."""
    changed = {}
    for field in fields(few):
        if hasattr(settings, field.name):
            changed[field.name] = getattr(few, field.name)
    return replace(settings, **changed)


@torch.no_grad()
def own_context(
    backbone: Backbone, few: FewStepSettings, settings: BackboneSettings, batch: Batch, rng: np.random.Generator
) -> torch.Tensor:
    """The batch's frames [B, F, C, h, w], a share of the blocks as the model makes them from noised ones."""
    context = blurred(batch.clean, batch.block, settings.context_noise, rng)
    noisy, sigma, _ = draw_noisy(batch.clean, batch.block, 1, 0.0, rng, few.lowest)
    made = noisy - sigma * forward(
        backbone, batch.captions, context, noisy, sigma, contexts_of(backbone, batch.plans, noisy)
    )
    own = torch.from_numpy(rng.random((len(context), context.shape[1] // batch.block)) < few.own)
    own = repeat(own, "b s -> b (s f) 1 1 1", f=batch.block).to(made.device)
    return torch.where(own, made[:, 0], context)


@torch.no_grad()
def invented_context(
    backbone: Backbone, settings: BackboneSettings, batch: Batch, context: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """The batch's frames [B, F, C, h, w]: true before a cut, after it as the model makes them without memory.

    They are made of noise alone, in two steps, each block after the frames of `context`.
    """
    plans = [without_memory(plan, number) for number, plan in enumerate(batch.plans)]
    truth = blurred(batch.clean, batch.block, settings.context_noise, rng)
    made = torch.zeros_like(batch.clean)
    seen = contexts_of(backbone, plans, made.unsqueeze(1))
    for level in (1.0, HALFWAY):
        noise = normal(rng, len(made), 1, *made.shape[1:], device=made.device)
        sigma = torch.full((len(made), 1, made.shape[1], 1, 1, 1), level, device=made.device)
        noisy = (1 - sigma) * made.unsqueeze(1) + sigma * noise
        made = (noisy - sigma * forward(backbone, batch.captions, context, noisy, sigma, seen))[:, 0]
    blocks = context.shape[1] // batch.block
    cut = batch.block * rng.integers(blocks // 4, blocks, len(context))
    late = torch.from_numpy(np.arange(context.shape[1]) >= cut[:, None]).to(made.device)
    return torch.where(late[..., None, None, None], made, truth)


def without_memory(plan: BlockPlan, number: int) -> BlockPlan:
    """The plan of a sequence's block with this number, its frames right before the block alone."""
    dropped = plan.context.shape[1] - plan.local_frames(number * plan.own_frames)
    return BlockPlan(plan.context[:, dropped:], plan.positions[dropped:])
