"""A training run on disk: where it stands, saved so that it continues exactly, in the published dict form."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.optim import Optimizer

from ae.losses import Losses
from ae.settings import SIZES, course
from utils.errors import UserError
from utils.files import atomic
from utils.tensors import read_tensors, save_tensors


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

    def row(self, val_sums: Sequence[float]) -> dict[str, float]:
        """The averages of the epoch; without held-out chunks those of training stand for theirs.

        Args:
            val_sums: like `sums`, over the held-out files.
        """
        row: dict[str, float] = {"epoch": self.epoch, "step": self.step}
        for part, sums in (("train", self.sums), ("val", val_sums if val_sums[0] else self.sums)):
            for name, total in zip(Losses._fields, sums[1:], strict=True):
                row[f"{part}_{name}"] = total / sums[0]
        return row

    def begin(self, epoch: int) -> None:
        """Stand at the first batch of an epoch."""
        self.epoch = epoch
        self.batch = 0
        self.sums = [0.0] * 5


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


def read(path: Path, config: Mapping[str, Any], files: Mapping[str, list[str]], exact: bool) -> Mapping[str, Any]:
    """The content of a checkpoint, ours or a published one, that a training of `config` can go on from.

    Args:
        exact: refuse any setting or file that would change the course of the training (`ae.settings.course`).
            Otherwise only the sizes must agree and `config` decides.

    Raises:
        UserError: unreadable, not a training checkpoint, or one of another training.
    """
    content = read_tensors(path, "checkpoint", "correct resume=, or leave it out")
    _require_training(path, content)
    trained = content["config"]
    _same(config, trained, SIZES, f"{path} was trained", "use its sizes, or start anew with resume=none")
    if exact:
        remedy = f"choose another tag=, start anew with resume=none, or continue all the same with resume={path}"
        _same(config, trained, course(), f"{path} was trained", remedy)
        if content.get("files") != dict(files):
            raise UserError(f"{path} was trained on other files than config's data_dir holds now; {remedy}")
    return content


def resume(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scaler: Any,
    config: Mapping[str, Any],
    files: Mapping[str, list[str]],
    exact: bool,
) -> Progress:
    """Load a checkpoint into model, optimizer and scaler; returns where it stands.

    Over other files than its own an unfinished epoch and the best loss start again.

    Args: see `read`.

    Raises:
        UserError: see `read`; or the weights do not fit the model.
    """
    content = read(path, config, files, exact)
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        if scaler and content.get("scaler"):
            scaler.load_state_dict(content["scaler"])
        progress = _progress(content)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not fit the model: {' '.join(str(error).split())[:300]}") from error
    for group in optimizer.param_groups:
        group.update(lr=config["lr"], weight_decay=config["weight_decay"])
    if content.get("files") != dict(files):
        progress.begin(progress.epoch)
        progress.best = math.inf
    return progress


def _progress(content: Mapping[str, Any]) -> Progress:
    """Where a checkpoint stands; its random numbers go on from there."""
    if "progress" not in content:  # a published one: on which files its loss was measured is not known
        return Progress(epoch=content["epoch"] + 1)
    torch.set_rng_state(content["rng"])
    return Progress(**content["progress"])


def _require_training(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse what is not of the form that `save` writes."""
    kinds = {"epoch": int, "model": Mapping, "optimizer": Mapping, "config": Mapping}
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            needed = ", ".join(kinds)
            raise UserError(f"{path} is no training checkpoint: {needed} are needed, and {key} is wrong or missing")


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
