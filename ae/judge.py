"""Retrieval rules judged on clips: every rule on every block, then averages with their confidence intervals."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ae.dataset import open_latents
from ae.metrics import METRICS, Clip, Policy, Views, bootstrap, retrieve, similarity_by_distance
from utils.errors import UserError

BASELINE = "avg_pool"
TENTHS = 10


@dataclass
class Rule:
    """A row of the table: who describes the frames, once a seed; who selects among them; what came of it.

    Attributes:
        describe: latents [B, F, C, H, W] to descriptors [B, F, D], one function a seed.
        select: (similarities [n], candidates, k) to indices among the candidates.
        values: a tensor [seeds, metrics] for each clip.
        curves: a tensor [F-1] for each clip and seed: mean similarity of frames 1, 2, ... apart.
        tenths: how many retrieved frames came from each tenth of the candidates, oldest first.
    """

    name: str
    describe: list[Callable[[Tensor], Tensor]]
    select: Callable[[Tensor, Sequence[int], int], list[int]]
    values: list[Tensor] = field(default_factory=list)
    curves: list[Tensor] = field(default_factory=list)
    tenths: list[int] = field(default_factory=lambda: [0] * TENTHS)

    def run(self, clip: Clip, latents: Tensor) -> None:
        """Retrieve for every block of a clip, whose latents [F, C, H, W] are on the descriptor's device."""
        values = []
        for describe in self.describe:
            descriptors = describe(latents[None])[0].float().cpu()
            found = retrieve(descriptors, clip, self.select)
            values.append(torch.tensor([clip.judge(start, frames) for start, frames in found]).nanmean(0))
            self.curves.append(similarity_by_distance(descriptors))
            for start, frames in found:
                candidates = clip.policy.candidates(start)
                for frame in frames:
                    self.tenths[TENTHS * candidates.index(frame) // len(candidates)] += 1
        self.values.append(torch.stack(values))


class Noise:
    """A descriptor that knows nothing: the most similar noise is a fair draw."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, latents: Tensor) -> Tensor:
        return torch.randn(*latents.shape[:2], 64, generator=self.generator)


@torch.inference_mode()
def judge(rules: list[Rule], paths: list[Path], policy: Policy, overlap: float, device: str) -> dict[str, Any]:
    """Run every rule on every clip that is long enough; returns the report as plain data.

    Raises:
        UserError: no clip is long enough, or a file's truth does not fit it.
    """
    blocks, clips, longest = 0, 0, 0
    for path, latents in _clips(paths):
        clip = Clip(latents, policy, read_views(path, len(latents)), overlap)
        longest = max(longest, len(latents))
        if clip.blocks:
            clips, blocks = clips + 1, blocks + len(clip.blocks)
            for rule in rules:
                rule.run(clip, latents.to(device))
    if not clips:
        raise UserError(
            f"the longest clip has {longest} frames, and no block in it has more than the {policy.layout.memory} "
            "candidates that it may retrieve; make longer clips"
        )
    settings = {"layout": asdict(policy.layout), "overlap": overlap, "clips": clips, "blocks": blocks}
    return settings | {"rules": _summaries(rules)}


def read_views(path: Path, frames: int) -> Views | None:
    """The camera's truth beside a latent file, if there is one: `latent_000007.truth.json`."""
    truth = path.with_suffix(".truth.json")
    if not truth.is_file():
        return None
    try:
        content = json.loads(truth.read_text())
        loop = content.get("loop")
        views = Views(
            tuple(map(float, content["camera"])), float(content["view"]), None if loop is None else float(loop)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{truth} is not of the form {{"camera": [...], "view": width, "loop": null}}: {error}'
        ) from error
    if len(views.camera) != frames:
        raise UserError(f"{truth} gives {len(views.camera)} camera positions and {path.name} has {frames} frames")
    return views


def _clips(paths: list[Path]) -> Iterator[tuple[Path, Tensor]]:
    """Clips [F, C, H, W] float32 of one shape; others are named, and left out."""
    shape = None
    for path in paths:
        try:
            latents = open_latents(path).float()
            shape = shape or latents.shape[1:]
            if latents.shape[1:] != shape or not latents.sum().isfinite():
                raise UserError(f"{path} holds NaN, or other sizes than the files before it")
        except UserError as error:
            print(f"skipped: {error}", flush=True)
        else:
            yield path, latents


def _summaries(rules: list[Rule]) -> dict[str, Any]:
    """For each rule and metric: mean and 95% interval, and the same of its gain over the baseline."""
    values = {rule.name: torch.stack(rule.values, dim=1) for rule in rules}  # [seeds, clips, metrics]
    draws = {name: bootstrap(value) for name, value in values.items()}
    means = {name: value.nanmean(dim=(0, 1)) for name, value in values.items()}
    summaries = {}
    for rule in rules:
        curve = pad_sequence(rule.curves, batch_first=True, padding_value=torch.nan).nanmean(0)
        gain, gain_draws = means[rule.name] - means[BASELINE], draws[rule.name] - draws[BASELINE]
        summaries[rule.name] = {
            "seeds": len(rule.describe),
            "metrics": _intervals(means[rule.name], draws[rule.name]),
            f"gain_over_{BASELINE}": _intervals(gain, gain_draws),
            "similarity_by_distance": curve.tolist(),
            "retrieved_from_tenth_of_past": [count / sum(rule.tenths) for count in rule.tenths],
        }
    return summaries


def _intervals(means: Tensor, draws: Tensor) -> dict[str, list[float] | None]:
    """{metric: [mean, low, high]}, None where no clip could tell."""
    low, high = draws.nanquantile(torch.tensor([0.025, 0.975]), dim=0)
    rows = torch.stack([means, low, high], dim=1).tolist()
    return {name: row if row[0] == row[0] else None for name, row in zip(METRICS, rows, strict=True)}
