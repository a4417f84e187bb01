"""A training run on disk: where it stands, saved so that it continues exactly, in the published dict form."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.optim import Optimizer

from utils.errors import UserError
from utils.files import atomic
from utils.tensors import read_tensors, save_tensors

SIZES = ("in_channels", "spatial_h", "spatial_w", "latent_dim", "hidden_dims")
COURSE = (  # with the sizes and the files, all that decides what the training computes
    *("seed", "val_split", "data_percentage", "seq_len", "batch_size", "lr", "weight_decay", "grad_clip"),
    *("delta_weight", "delta_margin", "delta_window", "smooth_weight", "use_amp", "amp_dtype"),
)


@dataclass
class Progress:
    """Where a run stands. The order of files and chunks follows from (seed, epoch), so this and the weights are all.

    Attributes:
        epoch, batch: the next batch to train on.
        step: optimizer steps made.
        best: lowest loss so far, on the held-out files if there are any.
        sums: over the epoch so far: chunks, then each loss times its chunks.
        history: one row of averages per finished epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = math.inf
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    history: list[dict[str, float]] = field(default_factory=list)


def save(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scaler: Any,
    config: Mapping[str, Any],
    progress: Progress,
    files: Mapping[str, list[str]],
) -> None:
    """Write a checkpoint, atomically.

    The published keys are `epoch` (last finished, from 0), `model`, `optimizer`, `scaler`, `config` (flat) and
    `val_loss`; `progress`, `files` (names of the `train` and `val` files) and `rng` are there to continue.
    """
    content = {
        "epoch": progress.epoch - 1,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
        "config": dict(config),
        "val_loss": progress.history[-1]["val_total"] if progress.history else math.inf,
        "progress": asdict(progress),
        "files": dict(files),
        "rng": torch.get_rng_state(),
    }
    save_tensors(path, content)


def resume(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scaler: Any,
    config: Mapping[str, Any],
    files: Mapping[str, list[str]],
    exact: bool,
) -> Progress:
    """Load a checkpoint, ours or a published one, into model, optimizer and scaler; returns where it stands.

    Args:
        exact: refuse any setting or file that would change the course of the training. Otherwise only the sizes
            must agree and `config` decides; over other files an unfinished epoch and the best loss start again.

    Raises:
        UserError: unreadable, not a training checkpoint, or one of another training.
    """
    content = read_tensors(path, "checkpoint", "correct resume=, or leave it out")
    if not {"epoch", "model", "optimizer", "config"} <= content.keys():
        raise UserError(f"{path} is no training checkpoint: epoch, model, optimizer and config are needed")
    _same(config, content["config"], SIZES, f"{path} was trained", "use its sizes, or start anew with resume=none")
    if exact:
        remedy = f"choose another tag=, start anew with resume=none, or continue all the same with resume={path}"
        _same(config, content["config"], COURSE, f"{path} was trained", remedy)
        if content.get("files") != dict(files):
            raise UserError(f"{path} was trained on other files than config's data_dir holds now; {remedy}")
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not fit the model: {' '.join(str(error).split())[:300]}") from error
    for group in optimizer.param_groups:
        group.update(lr=config["lr"], weight_decay=config["weight_decay"])
    if scaler and content.get("scaler"):
        scaler.load_state_dict(content["scaler"])
    if "progress" not in content:  # a published one: on which files its loss was measured is not known
        return Progress(epoch=content["epoch"] + 1)
    torch.set_rng_state(content["rng"])
    progress = Progress(**content["progress"])
    if content["files"] != dict(files):
        progress.batch, progress.sums, progress.best = 0, Progress().sums, math.inf
    return progress


def export(path: Path, target: Path) -> None:
    """Write what inference needs of the checkpoint `path`: the weights as safetensors, `config` and `files` beside."""
    content = read_tensors(path, "checkpoint", "train first")
    metadata = {key: json.dumps(content[key]) for key in ("config", "files")}
    with atomic(target) as temporary:  # save_file would make the file private to its owner
        temporary.write_bytes(to_safetensors(content["model"], metadata))


def write_curve(path: Path, history: list[dict[str, float]]) -> None:
    """The history as CSV, one row an epoch, with every digit of its numbers."""
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, history[0].keys())
        writer.writeheader()
        writer.writerows(history)


def _same(config: Mapping, trained: Mapping, keys: tuple[str, ...], what: str, remedy: str) -> None:
    for key in keys:
        if key in trained and trained[key] != config[key]:
            raise UserError(f"{what} with {key} {trained[key]} and the config says {config[key]}; {remedy}")
