"""Every rule on every block of every clip, then averages with their confidence intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ae.usefulness_train import SUFFIX, read_gains
from evaluation.compare.statistics import Estimate, estimate_crossed
from evaluation.retrieval.clips import read_clips, read_views
from evaluation.retrieval.engine import Block, Describe, blocks_with_a_choice, replay, sizes
from evaluation.retrieval.measures import METRICS, Clip, similarity_by_distance
from pipeline.descriptors import Asking
from utils.errors import UserError

BASELINE = "avg_pool"
TENTHS = 10


@dataclass
class Rule:
    """A row of the table: what describes the frames, once a seed, and the rule that selects among them.

    Attributes:
        selection: name of a rule in `pipeline.selection.SELECTIONS`.
        values: for each clip, an array [seeds, metrics]: means over its blocks.
        curves: for each clip and seed, [F-1]: mean similarity of frames 1, 2, ... apart.
        tenths: how many retrieved frames came from each tenth of the candidates, oldest first.
    """

    name: str
    describe: list[Describe]
    selection: str = "similarity"
    values: list[np.ndarray] = field(default_factory=list)
    curves: list[np.ndarray] = field(default_factory=list)
    tenths: list[int] = field(default_factory=lambda: [0] * TENTHS)

    def run(self, clip: Clip, blocks: Sequence[Block], latents: Tensor, name: str) -> None:
        """Retrieve for the blocks of a clip, whose latents [F, C, H, W] are on the descriptor's device."""
        means = []
        for seed, describe in enumerate(self.describe):
            descriptors = describe(latents[None])[0].float().cpu()
            draw = f"{name}/{seed}"
            if isinstance(describe, Asking):
                retrieved = replay(latents, blocks, self.selection, draw, describe)
            else:
                retrieved = replay(descriptors, blocks, self.selection, draw)
            judged = []
            for block, frames in zip(blocks, retrieved, strict=True):
                judged.append(clip.judge(block, frames))
                self._count(block, frames)
            means.append(mean_without_nan(np.array(judged, float), axis=0))
            self.curves.append(similarity_by_distance(descriptors).numpy())
        self.values.append(np.stack(means))

    def _count(self, block: Block, frames: Sequence[int]) -> None:
        for frame in frames:
            place = block.candidates.index(frame)
            self.tenths[TENTHS * place // len(block.candidates)] += 1


@torch.inference_mode()
def judge(rules: list[Rule], paths: list[Path], policy: Any, overlap: float, device: Any) -> dict[str, Any]:
    """Run every rule on every clip that is long enough; the report as plain data.

    Args:
        policy: from `engine.make_policy`.
        overlap: see `measures.Clip`.

    Raises:
        UserError: no clip is long enough, or a file's truth does not fit it.
    """
    block_count = 0
    clip_count = 0
    longest = 0
    for path, latents in read_clips(paths):
        views = read_views(path, len(latents))
        blocks = blocks_with_a_choice(policy, len(latents))
        longest = max(longest, len(latents))
        if not blocks:
            continue
        clip = Clip(latents, views, overlap, gains_beside(path))
        clip_count += 1
        block_count += len(blocks)
        for rule in rules:
            rule.run(clip, blocks, latents.to(device), path.name)
    if not clip_count:
        raise UserError(
            f"the longest clip has {longest} frames, and no block in it has more candidates than it may retrieve; "
            "make longer clips"
        )
    return {
        "layout": sizes(policy),
        "overlap": overlap,
        "clips": clip_count,
        "blocks": block_count,
        "rules": summarise(rules),
    }


def gains_beside(path: Path) -> dict[int, dict[int, float]]:
    """First frame of a block -> earlier frame -> its gain, as `evaluation.retrieval.gains` left them; empty without."""
    if not path.with_suffix(SUFFIX).is_file():
        return {}
    found = {}
    for block in read_gains(path):
        found[block["start"]] = dict(zip(block["frames"], block["gains"], strict=True))
    return found


def summarise(rules: list[Rule]) -> dict[str, Any]:
    """For each rule and metric: mean and 95% interval, and the same of its gain over the baseline."""
    values = {}
    for rule in rules:
        values[rule.name] = np.stack(rule.values, axis=1)  # [seeds, clips, metrics]
    baseline = mean_without_nan(values[BASELINE], axis=0)  # [clips, metrics]
    summaries = {}
    for rule in rules:
        retrieved = max(sum(rule.tenths), 1)
        summaries[rule.name] = {
            "seeds": len(rule.describe),
            "metrics": _estimates(values[rule.name]),
            f"gain_over_{BASELINE}": _estimates(values[rule.name] - baseline),
            "similarity_by_distance": _mean_curve(rule.curves),
            "retrieved_from_tenth_of_past": [count / retrieved for count in rule.tenths],
        }
    return summaries


def table(rules: Mapping[str, Any]) -> list[list[str]]:
    """The report's rules as rows for `utils.table`, without metrics that no clip could tell."""
    told = []
    for metric in METRICS:
        if any(rule["metrics"][metric] for rule in rules.values()):
            told.append(metric)
    rows = [["rule", "seeds", *told]]
    for name, rule in rules.items():
        cells = [_cell(rule["metrics"][metric]) for metric in told]
        rows.append([name, str(rule["seeds"]), *cells])
    return rows


def mean_without_nan(values: np.ndarray, axis: int) -> np.ndarray:
    """Means along an axis over the values that are numbers; nan where none is."""
    told = ~np.isnan(values)
    count = told.sum(axis)
    total = np.where(told, values, 0).sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _estimates(values: np.ndarray) -> dict[str, list[float | None] | None]:
    """{metric: [mean, low, high]} of values [seeds, clips, metrics]; None where no clip could tell."""
    found: dict[str, list[float | None] | None] = {}
    for number, metric in enumerate(METRICS):
        estimate = estimate_crossed(values[:, :, number])
        found[metric] = _to_list(estimate) if estimate else None
    return found


def _to_list(estimate: Estimate) -> list[float | None]:
    return [estimate.mean, estimate.low, estimate.high]


def _mean_curve(curves: list[np.ndarray]) -> list[float]:
    """The mean of curves, each as far as it goes."""
    longest = max(len(curve) for curve in curves)
    padded = np.full((len(curves), longest), np.nan)
    for row, curve in zip(padded, curves, strict=True):
        row[: len(curve)] = curve
    return mean_without_nan(padded, axis=0).tolist()


def _cell(values: Sequence[float | None] | None) -> str:
    if values is None:
        return "-"
    mean, low, high = values
    if low is None:
        return f"{mean:.3f}"
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
