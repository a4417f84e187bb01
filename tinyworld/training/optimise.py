"""The steps of the backbone's training: gradients, averaged weights, curves, a state to resume from."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tinyworld.training.muon import MuonAdamW
from tinyworld.training.settings import STEPS, BackboneSettings
from tinyworld.training.state import Checkpoint, Log

B = TypeVar("B", bound=nn.Module)
T = TypeVar("T")
WEIGHT_DECAY = 0.01  # of the matrices


def optimise(
    backbone: B,
    settings: BackboneSettings,
    steps: int,
    schedule: Callable[[int], float],
    batches: Callable[[range], Iterator[T]],
    loss: Callable[[T], tuple[str, torch.Tensor]],
    name: Path,
    about: dict[str, Any],
) -> B:
    """Take `steps` steps on the `loss` of what `batches` gives for each; the averaged weights come back.

    `loss` gives a step's kind and value.
    State and curves are kept as `name`.pt and `name`.csv, the state with what it depends on, `about`.
    """
    average = AveragedModel(backbone.train(), multi_avg_fn=_average(settings.ema))
    optimizer = _optimizer(backbone)
    parts = {"backbone": backbone, "average": average, "optimizer": optimizer}
    checkpoint = Checkpoint(name.with_suffix(".pt"), parts, about)
    log = Log(name.with_suffix(".csv"))
    recent: dict[str, list[torch.Tensor]] = {kind: [] for kind in STEPS}  # losses since the last line of the log
    started = time.monotonic()
    left = range(checkpoint.resume(), steps)
    for step, batch in zip(left, batches(left), strict=True):
        kind, value = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        rate = schedule(step)
        optimizer.step(settings.muon_lr * rate, settings.adam_lr * rate)
        average.update_parameters(backbone)
        recent[kind].append(value.detach())
        if step % 50 == 49 or step + 1 == steps:
            means = {kind: float(torch.stack(values).mean()) if values else np.nan for kind, values in recent.items()}
            taken = sum(map(len, recent.values()))
            log.write(step + 1, **means, seconds=(time.monotonic() - started) / taken)
            recent = {kind: [] for kind in STEPS}
            started = time.monotonic()
        checkpoint.save(step + 1)
    checkpoint.save(steps, force=True)
    log.draw()
    return average.module.eval()


def _optimizer(backbone: nn.Module) -> MuonAdamW:
    """Muon for the matrices of the transformer's blocks."""
    matrices, others = [], []
    for name, parameter in backbone.named_parameters():
        if name.startswith("model.blocks.") and parameter.ndim == 2:
            matrices.append(parameter)
        else:
            others.append(parameter)
    return MuonAdamW(matrices, others, WEIGHT_DECAY)


def _average(decay: float) -> Callable:
    """Exponential average of the weights, shorter at the start so that it forgets where they began."""

    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        count = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    return update
