"""The miniature causal backbone: flow matching with block-causal teacher forcing."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn.functional import cross_entropy

from pipeline.context import ContextPolicy
from tinyworld.training.bf16_linear import Bf16Linear, bf16_is_fast, use_bf16_matmul
from tinyworld.training.contexts import draw_sequence, latentmem, native, recallable
from tinyworld.training.corpus import Corpus
from tinyworld.training.lookup import Lookup
from tinyworld.training.optimise import optimise
from tinyworld.training.settings import STEPS, BackboneSettings
from tinyworld.training.state import digest, generator, normal, under
from tinyworld.training.teacher_forcing import BlockPlan, TeacherForcing
from tinyworld.training.text_encoder import TextEncoder
from tinyworld.training.workers import made_ahead
from tinyworld.world.captions import COLOURS, KINDS
from wan.model import CausalWanModel, Context
from wan.params import WanParams

LOOK = (len(COLOURS) + 1, len(KINDS) + 1)  # how many there are of each, with none
SHIFT = 5.0  # of the noise levels, as the sampler has it


class Backbone(nn.Module):
    """The transformer and its text encoder, trained together, and a readout that serves the training only.

    `ahead` reads what comes next off the middle of the transformer, at every token: what the caption names
    after what is in view is three lookups away, which the error of the picture alone hardly teaches.
    """

    def __init__(self, settings: BackboneSettings, channels: int) -> None:
        super().__init__()
        sizes = {}
        for field in fields(WanParams):
            if hasattr(settings, field.name):
                sizes[field.name] = getattr(settings, field.name)
        self.model = CausalWanModel(**sizes, in_dim=channels, out_dim=channels)
        nn.init.zeros_(self.model.head.head.weight)
        self.text = TextEncoder(settings.text_dim, settings.text_layers, settings.text_len)
        self.ahead = nn.Sequential(nn.RMSNorm(settings.dim), nn.Linear(settings.dim, sum(LOOK) + 1))
        nn.init.zeros_(self.ahead[1].weight)


@dataclass(frozen=True)
class Batch:
    """What one step trains on: a stretch of a few clips, and what each of its blocks attends to.

    Attributes:
        captions: one a clip.
        frames: [F] indices into the videos.
        clean: [B, F, C, h, w] latents, bfloat16 as in the corpus until they are on the device.
        plans: one a block.
        ahead: [B, blocks, 3] what comes next as each block begins, see `scene.ahead`.
        recallable: [B, F, w] which columns of the latents only the sink or the memory of their block shows.
        camera: [B, F] pixels.
    """

    captions: list[str]
    frames: np.ndarray
    clean: torch.Tensor
    plans: list[BlockPlan]
    ahead: torch.Tensor
    recallable: torch.Tensor
    camera: np.ndarray

    @property
    def block(self) -> int:
        """Latent frames of a block."""
        return self.plans[0].own_frames

    def to(self, device: torch.device) -> "Batch":
        """The same batch, its latents on this device, in float32."""
        return replace(self, clean=self.clean.to(device).float())

    def recalls(self) -> np.ndarray | None:
        """[blocks] to which of them sink and memory alone show something; None where it is none of them."""
        shown = self.recallable.any(2).any(0).reshape(-1, self.block).any(1).numpy()
        return shown if shown.any() else None


def train(
    settings: BackboneSettings,
    policy: ContextPolicy,
    corpora: list[Corpus],
    folder: Path,
    seed: int,
    device: torch.device,
    start: Backbone | None = None,
    workers: int = 0,
) -> Backbone:
    """Train on [long clips, starts], from new weights or from `start`; resumes from `folder`. The averaged weights.

    Args:
        start: on the device.
        workers: processes that draw batches beside.
    """
    torch.manual_seed(seed)
    backbone = start or Backbone(settings, corpora[0].latents.shape[2]).to(device)
    if settings.bf16_matmul and bf16_is_fast(device):
        use_bf16_matmul(backbone.model.blocks)

    def draw(step: int) -> tuple[np.random.Generator, str, Batch]:
        rng = generator(seed, 20, step)
        return rng, *draw_batch(settings, policy, corpora, rng)

    def loss(drawn: tuple[np.random.Generator, str, Batch]) -> tuple[str, torch.Tensor]:
        rng, kind, batch = drawn
        batch = batch.to(device)
        context = blurred(batch.clean, batch.block, settings.context_noise, rng)
        return kind, teacher_forcing_loss(backbone, settings, batch, context, rng)

    def rate(step: int) -> float:
        return _schedule(step, settings)

    about = {
        "seed": seed,
        **under("context", policy),
        **under("backbone", settings),
        "latents": digest(corpus.latents for corpus in corpora),
    }
    if start:
        about["start"] = digest(start.state_dict().values())
    if not settings.steps:
        return backbone.eval()
    batches = partial(made_ahead, draw, workers=workers)
    return optimise(backbone, settings, settings.steps, rate, batches, loss, folder / "backbone", about)


def draw_batch(
    settings: BackboneSettings, policy: ContextPolicy, corpora: list[Corpus], rng: np.random.Generator
) -> tuple[str, Batch]:
    """A step's kind, one of STEPS, and its batch: how videos start, or later stretches under either policy."""
    kind = str(rng.choice(STEPS, p=settings.kinds))
    long, starts = corpora
    if kind == "start":
        corpus = starts
        count = settings.start_batch
        frames = np.arange(policy.block * settings.start_blocks)
    else:
        corpus = long
        count = settings.batch
        frames = draw_sequence(settings, policy, rng)
    picks = rng.integers(0, len(corpus), count)
    inside = corpus.inside(frames)
    clean = corpus.latents[torch.from_numpy(picks)[:, None], torch.from_numpy(inside)]
    camera = corpus.camera[picks][:, inside]
    if kind == "native" or (kind == "start" and rng.random() < 0.5):
        plans = native(frames, policy, count)
    else:
        plans = latentmem(frames, camera, policy, settings, rng)
    before_each_block = np.maximum(inside[:: policy.block] - 1, 0)
    ahead = corpus.ahead[picks][:, before_each_block]
    dropped = rng.random(count) < settings.caption_dropout
    captions = []
    for pick, drop in zip(picks, dropped, strict=True):
        captions.append("" if drop else corpus.captions[pick])
    columns = torch.from_numpy(recallable(plans, camera))
    return kind, Batch(captions, frames, clean, plans, torch.from_numpy(ahead), columns, camera)


def draw_noisy(
    clean: torch.Tensor, block: int, copies: int, full_noise: float, rng: np.random.Generator, lowest: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy copies of clean latents [B, F, C, h, w], one noise level s of `lowest`..1 a block and copy.

    Returns:
        noisy [B, copies, F, C, h, w], sigma [B, copies, F, 1, 1, 1], flow to predict, like noisy.
    """
    s = rng.uniform(lowest, 1, (len(clean), copies, clean.shape[1] // block))
    s[rng.random(s.shape) < full_noise] = 1.0
    sigma = torch.from_numpy(SHIFT * s / (1 + (SHIFT - 1) * s)).float().clamp_min(1e-3)
    sigma = repeat(sigma, "b c s -> b c (s f) 1 1 1", f=block).to(clean.device)
    noise = normal(rng, len(clean), copies, *clean.shape[1:], device=clean.device)
    return (1 - sigma) * clean.unsqueeze(1) + sigma * noise, sigma, noise - clean.unsqueeze(1)


def blurred(clean: torch.Tensor, block: int, most: float, rng: np.random.Generator) -> torch.Tensor:
    """Context as a rollout may have it: noise of a random deviation, up to `most`, on every block."""
    strength = torch.from_numpy(rng.random((len(clean), clean.shape[1] // block))).float().to(clean.device) * most
    return clean + repeat(strength, "b s -> b (s f) 1 1 1", f=block) * normal(rng, *clean.shape, device=clean.device)


def teacher_forcing_loss(
    backbone: Backbone,
    settings: BackboneSettings,
    batch: Batch,
    context: torch.Tensor,
    rng: np.random.Generator,
    guidance: float = 0.0,
    taught: Sequence[bool] | None = None,
) -> torch.Tensor:
    """Mean error of the predicted flow over all noisy blocks, each after the `context` frames of its plan.

    The weight makes it the error of x0 weighted by min(1 / sigma^2, 4). With `guidance` g the target moves on
    by g times what the caption changed (arXiv 2502.12154): the flow that is learned is classifier-free
    guidance of scale 1 / (1 - g), at the price of one forward a step.

    Args:
        taught: which blocks count; None: all.
    """
    noisy, sigma, target = draw_noisy(batch.clean, batch.block, settings.copies, settings.full_noise, rng)
    hidden: list[torch.Tensor] = []  # [B, 1 + copies, tokens, dim]
    middle = backbone.model.blocks[len(backbone.model.blocks) // 2]
    if settings.ahead:
        tap = middle.register_forward_hook(lambda _, __, x: hidden.append(x.unflatten(1, (1 + settings.copies, -1))))
    seen = contexts_of(backbone, batch.plans, noisy)
    lookup = Lookup(settings.taught_heads(), batch.camera, seen) if settings.lookup else None
    flow = forward(backbone, batch.captions, context, noisy, sigma, lookup or seen)
    recallable = batch.recallable.to(noisy.device)[:, None, :, None, None]  # [B, 1, F, 1, 1, w]
    if guidance:
        with torch.no_grad():
            without_caption = forward(backbone, [""] * len(context), context, noisy, sigma, seen)
            target = target + guidance * (flow - without_caption)
    follows = np.diff(batch.frames, prepend=-1)[:: batch.block] == 1  # after a gap a block cannot know where it is
    counted = torch.from_numpy(follows if taught is None else follows & taught).to(flow.device)
    weight = (4 * sigma.square()).clamp_max(1.0) * counted.repeat_interleave(batch.block)[:, None, None, None]
    weight = weight * (1 + (settings.recall_weight - 1) * recallable)
    error = (weight * (flow - target).square()).mean() * len(counted) / counted.sum().clamp_min(1)
    if settings.ahead:
        tap.remove()
        has_caption = torch.tensor([[bool(caption)] for caption in batch.captions], device=flow.device)
        ahead_loss = _ahead_loss(backbone, hidden[0], batch.ahead.to(flow.device), has_caption & counted)
        error = error + settings.ahead * ahead_loss
    if lookup:
        error = error + settings.lookup * lookup.error()
    return error


def _ahead_loss(backbone: Backbone, hidden: torch.Tensor, ahead: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next object's colour and kind, and square error of the way to the turn, at every token.

    Args:
        hidden: [B, 1 + copies, tokens, dim] of the middle of the transformer, the clean run among them.
        ahead: [B, blocks, 3] see `scene.ahead`.
        known: [B, blocks] where caption and context tell it.
    """
    hidden = rearrange(hidden, "b c (s t) d -> b s (c t) d", s=known.shape[1])
    *looks, turn = backbone.ahead(hidden).split((*LOOK, 1), -1)  # each [B, blocks, tokens, choices]
    due = repeat(ahead, "b s three -> three b s t", t=hidden.shape[2])
    error = (turn[..., 0] - due[2]).square()
    for look, right in zip(looks, due[:2].long(), strict=True):
        error = error + cross_entropy(look.movedim(-1, 1), right, reduction="none")
    return (error.mean(2) * known).sum() / known.sum().clamp_min(1)


def forward(
    backbone: Backbone,
    captions: list[str],
    clean: torch.Tensor,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    context: Context,
) -> torch.Tensor:
    """Flow of every noisy copy [B, copies, F, C, h, w], each block in its clean context, frames of [B, F, C, h, w]."""
    noiseless = torch.zeros(len(clean), 1, clean.shape[1], device=clean.device)
    t = torch.cat([noiseless, 1000 * sigma.flatten(3)[..., 0]], 1)  # [B, 1 + copies, F]
    x = torch.cat([clean.unsqueeze(1), noisy], 1)
    text = backbone.model.encode_text(backbone.text(captions))
    flow = backbone.model(x.flatten(1, 2), t.flatten(1), text, context)
    return flow.unflatten(1, x.shape[1:3])[:, 1:]


def contexts_of(backbone: Backbone, plans: Sequence[BlockPlan], noisy: torch.Tensor) -> TeacherForcing:
    """What the blocks of noisy copies [B, copies, F, C, h, w] attend to in `forward`."""
    model = backbone.model
    _, ph, pw = model.config.patch_size
    grid = (noisy.shape[-2] // ph, noisy.shape[-1] // pw)
    # a GPU is several times faster in bfloat16, a CPU is not
    in_bf16 = noisy.device.type == "cuda" and isinstance(model.blocks[0].self_attn.o, Bf16Linear)
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    return TeacherForcing(plans, noisy.shape[1], *grid, model.params.head_dim, noisy.device, dtype)


def _schedule(step: int, settings: BackboneSettings) -> float:
    """Warm up, hold, then fall linearly to `rate_end` over the last `decay` of the steps."""
    left = (settings.steps - step) / max(settings.steps * settings.decay, 1)
    return min((step + 1) / settings.warmup, 1.0) * min(max(left, settings.rate_end), 1.0)
