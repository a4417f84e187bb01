"""Training of the usefulness encoder on a corpus whose frames' gains are known.

`python -m evaluation.retrieval.gains` measures them; they lie beside the latents as `latent_000007.gains.json`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
class UsefulnessSettings(UsefulnessParams):
    """Training of the usefulness encoder"""

    objective: str = setting("usefulness", "what is trained", choices=("usefulness",))
    data_dir: str = setting("datasets", "folder of latent_*.pt with their gains", place=True, reads=True)
    val_split: float = setting(0.1, "part of the files that is held out", at_least=0, below=1)
    temperature: float = setting(
        0.5, "differences in gain that count as one step, in standard deviations of the gains", above=0, at_most=100
    )
    batch_size: int = setting(32, "blocks of a step", at_least=1)
    lr: float = setting(1e-3, "learning rate, which falls to zero", above=0, at_most=1)
    weight_decay: float = setting(1e-2, "AdamW's weight decay", at_least=0, at_most=1)
    grad_clip: float = setting(1.0, "norm to which gradients are cut", above=0)
    epochs: int = setting(40, "passes over the blocks", at_least=1)
    seed: int = setting(42, "of the weights, the split and the order", at_least=0, at_most=2**32 - 1)
    log_dir: str = setting("ae_runs", "folder of the runs' folders", place=True, writes=True)
    tag: str = setting("utility", "name of the run's folder", place=True)


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


def train(config: str, overrides: Iterable[str]) -> Path:
    """Train as a YAML file and `key=value` overrides say; the exported encoder's path."""
    settings = load_settings(UsefulnessSettings, config, overrides)
    if world_size() > 1:
        raise UserError("the usefulness encoder is trained by one process; give GPU=0")
    folder = require_writable(f"{settings.log_dir}/{settings.tag}")
    kept, held_out = split(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spread = float(np.std([gain for block in kept for gain in block.gains])) or 1.0
    torch.manual_seed(settings.seed)
    model = UsefulnessEncoder(params_of(settings)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    last = folder / "last.pt"
    best = float("inf")
    first = 0
    if last.exists():
        first, best = resume(last, settings, model, optimizer)
    step = settings.temperature * spread
    for epoch in range(first, settings.epochs):
        learned = train_epoch(settings, model, optimizer, kept, epoch, step)
        judged = judge(model, batches(held_out or kept, settings.batch_size), step)
        print(f"epoch {epoch + 1}: loss {learned:.4f}, held out {judged:.4f}", flush=True)
        if judged < best:
            best = judged
            export(model, [block.file for block in kept], folder / "encoder.safetensors")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1, "best": best}
        save_tensors(last, state | {"settings": course(settings)})
    print(f"best loss {best:.4f}; the encoder is {folder / 'encoder.safetensors'}", flush=True)
    return folder / "encoder.safetensors"


def train_epoch(
    settings: UsefulnessSettings,
    model: UsefulnessEncoder,
    optimizer: torch.optim.Optimizer,
    blocks: Sequence[ScoredBlock],
    epoch: int,
    step: float,
) -> float:
    """One pass over the blocks, in an order that follows from the seed and the epoch; the mean loss."""
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * (1 - epoch / settings.epochs)
    order = np.random.default_rng([settings.seed, epoch]).permutation(len(blocks))
    losses = []
    for batch in batches([blocks[number] for number in order], settings.batch_size):
        loss = loss_of(model, batch, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def judge(model: UsefulnessEncoder, parts: Sequence[Sequence[ScoredBlock]], step: float) -> float:
    """Mean loss over batches."""
    return float(np.mean([loss_of(model, batch, step).item() for batch in parts]))


def batches(blocks: Sequence[ScoredBlock], size: int) -> list[list[ScoredBlock]]:
    """Blocks in order, at most `size` at a time."""
    return [list(blocks[first : first + size]) for first in range(0, len(blocks), size)]


def split(settings: UsefulnessSettings) -> tuple[list[ScoredBlock], list[ScoredBlock]]:
    """Scored blocks to train on and held out; whole files are held out."""
    paths = find_latents(settings.data_dir)
    order = np.random.default_rng(settings.seed).permutation(len(paths))
    count = min(max(1, round(settings.val_split * len(paths))), len(paths) - 1) if settings.val_split else 0
    parts: tuple[list[ScoredBlock], list[ScoredBlock]] = ([], [])
    shape = (settings.in_channels, settings.spatial_h, settings.spatial_w)
    for place, number in enumerate(order):
        path = paths[number]
        latents = open_latents(path)
        if tuple(latents.shape[1:]) != shape:
            raise UserError(
                f"latent file {path} has frames of {list(latents.shape[1:])} and the config says {list(shape)}"
            )
        for block in read_gains(path):
            frames, gains = tuple(block["frames"]), tuple(block["gains"])
            parts[place < count].append(ScoredBlock(path.name, latents, block["start"], frames, gains))
    if not parts[0]:
        raise UserError(f"the gains in {settings.data_dir} are of no block; make longer clips")
    return parts


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


def course(settings: UsefulnessSettings) -> str:
    """What decides the course of a training, as text."""
    elsewhere = places(UsefulnessSettings)
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
