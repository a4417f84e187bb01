"""Training of the usefulness encoder, by one of two objectives.

`usefulness` learns from a corpus whose frames' gains are known: `python -m evaluation.retrieval.gains` measures them,
and they lie beside the latents as `latent_000007.gains.json`. `foresight` (ae/foresight.py) needs latents alone.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ae.dataset import find_latents, open_latents
from ae.usefulness import UsefulnessEncoder, UsefulnessParams, metadata, params_of
from utils.errors import UserError
from utils.files import atomic, require_writable
from utils.processes import world_size
from utils.settings import load_settings, places, setting
from utils.tensors import read_tensors, save_tensors

SUFFIX = ".gains.json"


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(UsefulnessParams):
    """What all trainings of the usefulness encoder have"""

    data_dir: str = setting("datasets", "folder of latent_*.pt", place=True, reads=True)
    also: list[str] = setting([], "more such folders", place=True)
    val_split: float = setting(0.1, "part of the files that is held out", at_least=0, below=1)
    batch_size: int = setting(32, "blocks of a step; clips with foresight", at_least=1)
    lr: float = setting(1e-3, "learning rate, which falls to zero", above=0, at_most=1)
    weight_decay: float = setting(1e-2, "AdamW's weight decay", at_least=0, at_most=1)
    grad_clip: float = setting(1.0, "norm to which gradients are cut", above=0)
    epochs: int = setting(40, "passes over the corpus", at_least=1)
    seed: int = setting(42, "of the weights, the split and the order", at_least=0, at_most=2**32 - 1)
    log_dir: str = setting("ae_runs", "folder of the runs' folders", place=True, writes=True)
    tag: str = setting("utility", "name of the run's folder", place=True)


@dataclass(frozen=True, kw_only=True)
class UsefulnessSettings(EncoderSettings):
    """Training of the usefulness encoder on gains"""

    objective: str = setting("usefulness", "what is trained", choices=("usefulness",))
    temperature: float = setting(
        0.5, "differences in gain that count as one step, in standard deviations of the gains", above=0, at_most=100
    )


class Objective(Protocol):
    """What an encoder is trained on.

    Attributes:
        files: names of the latent files to train on.
    """

    files: Sequence[str]

    def epoch(self, number: int) -> Iterator[Any]:
        """The batches of a pass over the corpus, in an order that follows from the seed and its number."""

    def held_out(self) -> Iterator[Any]:
        """Batches of what is not trained on; of what is where nothing is held out."""

    def loss(self, model: UsefulnessEncoder, batch: Any) -> Tensor:
        """Of a batch."""


@dataclass(frozen=True)
class ScoredBlock:
    """A block of a corpus, and what each of some earlier frames gains for it.

    Attributes:
        latents: [F, C, H, W] of the clip, mapped.
        start: the block's first frame.
        frames: earlier frames.
        gains: how much each of them, alone in memory, lowers the denoising error.
    """

    file: str
    latents: Tensor
    start: int
    frames: tuple[int, ...]
    gains: tuple[float, ...]


def read_gains(path: Path) -> list[dict]:
    """The scored blocks beside a latent file: `start`, `frames` and `gains` of each.

    Raises:
        UserError: there are none, or not of that form.
    """
    beside = path.with_suffix(SUFFIX)
    try:
        blocks = json.loads(beside.read_text())["blocks"]
        for block in blocks:
            if len(block["frames"]) != len(block["gains"]) or not np.isfinite(block["gains"]).all():
                raise ValueError(f"gains of the block at {block['start']} are no numbers, one a frame")
    except FileNotFoundError as error:
        raise UserError(
            f"{beside} is missing; measure the gains with "
            f"python -m evaluation.retrieval.gains CONFIG --data {path.parent}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{beside} holds no gains: {error}; delete it and measure them again") from error
    return blocks


def train(config: str, overrides: Iterable[str], objective: str = "usefulness") -> Path:
    """Train as a YAML file and `key=value` overrides say; the exported encoder's path."""
    if objective == "foresight":
        from ae.foresight import Foresight, ForesightSettings  # late: it builds on this module

        schema, build = ForesightSettings, Foresight
    else:
        schema, build = UsefulnessSettings, Gains
    settings = load_settings(schema, config, overrides)
    if world_size() > 1:
        raise UserError("the usefulness encoder is trained by one process; give GPU=0")
    folder = require_writable(f"{settings.log_dir}/{settings.tag}")
    taught: Objective = build(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)
    model = UsefulnessEncoder(params_of(settings)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    last = folder / "last.pt"
    best = float("inf")
    first = 0
    if last.exists():
        first, best = resume(last, settings, model, optimizer)
    for epoch in range(first, settings.epochs):
        learned = train_epoch(settings, model, optimizer, taught, epoch)
        with torch.no_grad():
            judged = float(np.mean([taught.loss(model, batch).item() for batch in taught.held_out()]))
        print(f"epoch {epoch + 1}: loss {learned:.4f}, held out {judged:.4f}", flush=True)
        if judged < best:
            best = judged
            export(model, taught.files, folder / "encoder.safetensors")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1, "best": best}
        save_tensors(last, state | {"settings": course(settings)})
    print(f"best loss {best:.4f}; the encoder is {folder / 'encoder.safetensors'}", flush=True)
    return folder / "encoder.safetensors"


def train_epoch(
    settings: EncoderSettings,
    model: UsefulnessEncoder,
    optimizer: torch.optim.Optimizer,
    taught: Objective,
    epoch: int,
) -> float:
    """One pass over the corpus; the mean loss."""
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * (1 - epoch / settings.epochs)
    losses = []
    for batch in taught.epoch(epoch):
        loss = taught.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


class Gains:
    """Objective `usefulness`: the frame is chosen that gains most, or nothing, which gains 0."""

    def __init__(self, settings: UsefulnessSettings) -> None:
        self.settings = settings
        self.kept, self.held = split(settings)
        self.files = sorted({block.file for block in self.kept})
        spread = float(np.std([gain for block in self.kept for gain in block.gains])) or 1.0
        self.step = settings.temperature * spread

    def epoch(self, number: int) -> Iterator[list[ScoredBlock]]:
        """See `Objective`."""
        order = np.random.default_rng([self.settings.seed, number]).permutation(len(self.kept))
        yield from batches([self.kept[place] for place in order], self.settings.batch_size)

    def held_out(self) -> Iterator[list[ScoredBlock]]:
        """See `Objective`."""
        yield from batches(self.held or self.kept, self.settings.batch_size)

    def loss(self, model: UsefulnessEncoder, batch: list[ScoredBlock]) -> Tensor:
        """See `loss_of`."""
        return loss_of(model, batch, self.step)


def batches(blocks: Sequence[ScoredBlock], size: int) -> list[list[ScoredBlock]]:
    """Blocks in order, at most `size` at a time."""
    return [list(blocks[first : first + size]) for first in range(0, len(blocks), size)]


def split(settings: UsefulnessSettings) -> tuple[list[ScoredBlock], list[ScoredBlock]]:
    """Scored blocks to train on and held out; whole files are held out."""
    parts: tuple[list[ScoredBlock], list[ScoredBlock]] = ([], [])
    for part, paths in zip(parts, split_files(settings), strict=True):
        for path in paths:
            latents = open_frames(path, settings)
            for block in read_gains(path):
                frames, gains = tuple(block["frames"]), tuple(block["gains"])
                part.append(ScoredBlock(path.name, latents, block["start"], frames, gains))
    if not parts[0]:
        raise UserError(f"the gains in {settings.data_dir} are of no block; make longer clips")
    return parts


def split_files(settings: EncoderSettings) -> tuple[list[Path], list[Path]]:
    """Latent files to train on and held out."""
    paths = []
    for folder in (settings.data_dir, *settings.also):
        paths += find_latents(folder)
    order = np.random.default_rng(settings.seed).permutation(len(paths))
    count = min(max(1, round(settings.val_split * len(paths))), len(paths) - 1) if settings.val_split else 0
    return [paths[number] for number in order[count:]], [paths[number] for number in order[:count]]


def open_frames(path: Path, settings: EncoderSettings) -> Tensor:
    """Latent frames [F, C, H, W] of a file, mapped."""
    latents = open_latents(path)
    shape = (settings.in_channels, settings.spatial_h, settings.spatial_w)
    if tuple(latents.shape[1:]) != shape:
        raise UserError(f"latent file {path} has frames of {list(latents.shape[1:])} and the config says {list(shape)}")
    return latents


def loss_of(model: UsefulnessEncoder, blocks: Sequence[ScoredBlock], step: float) -> Tensor:
    """Cross-entropy of the predicted choice against a choice that follows the gains; nothing has a gain of 0.

    Args:
        step: difference of two gains by which one is chosen e times as often as the other.
    """
    device = model.none.device
    past = model.params.past
    most = max(len(block.frames) for block in blocks)
    recent, frames, wanted, absent = [], [], [], []
    for block in blocks:
        before = block.latents[max(block.start - past, 0) : block.start].float()
        missing = before[:1].expand(past - len(before), -1, -1, -1)
        recent.append(torch.cat([missing, before]))
        padded = [*block.frames, *[block.frames[0]] * (most - len(block.frames))]
        frames.append(block.latents[padded].float())
        gains = [*block.gains, *[-torch.inf] * (most - len(block.gains)), 0.0]
        wanted.append(gains)
        absent.append([gain == -torch.inf for gain in gains])
    logits = model(torch.stack(recent).to(device), torch.stack(frames).to(device))
    logits = logits.masked_fill(torch.tensor(absent, device=device), -1e4)
    choice = F.softmax(torch.tensor(wanted, device=device) / step, dim=1)
    return F.cross_entropy(logits, choice)


def export(model: UsefulnessEncoder, files: Sequence[str], path: Path) -> None:
    """Write the weights as the descriptor loads them."""
    with atomic(path) as temporary:
        save_file(model.state_dict(), temporary, metadata(model.params, sorted(set(files))))
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def course(settings: EncoderSettings) -> str:
    """What decides the course of a training, as text."""
    elsewhere = places(type(settings))
    return str({name: value for name, value in asdict(settings).items() if name not in elsewhere})


def resume(
    path: Path, settings: UsefulnessSettings, model: UsefulnessEncoder, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Load what an earlier run left: the epochs done and the best loss so far."""
    state = read_tensors(path, "checkpoint", "delete it to start anew")
    if state.get("settings") != course(settings):
        raise UserError(f"{path} is of a training with other settings; choose another tag=, or delete it")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"], state["best"]
