"""What every stage of the training needs: exact resumption, curves, falling learning rates."""

import csv
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.errors import UserError
from utils.files import atomic
from utils.settings import to_dict

STAGES = ("vae.pt", "long.pt", "short.pt", "backbone.pt", "fewstep.pt")  # each follows from those before it


class Checkpoint:
    """State of one training, written whole every `every` seconds.

    Whatever a step draws comes from `generator(seed, step)`, so a resumed run repeats the uninterrupted one.

    Args:
        about: all that the state depends on, as plain data: settings, seed, digests of what it starts from.
        grows: the one of these that may have become longer since, a list.
    """

    def __init__(self, path: Path, parts: dict[str, Any], about: dict[str, Any], grows: str = "", every: float = 120.0):
        self.path, self.parts, self.about, self.grows = path, parts, about, grows
        self.every, self.saved = every, time.monotonic()

    def resume(self) -> int:
        """Load what an earlier run left behind; the number of steps that it had done.

        Raises:
            UserError: it was made with other settings or from something else.
        """
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if changed := self._changed(state.get("about", {})):
            stale = [name for name in STAGES[STAGES.index(self.path.name) :] if self.path.with_name(name).exists()]
            raise UserError(
                f"{self.path} was made with other {', '.join(changed)}; "
                f"delete {', '.join(stale)} in {self.path.parent}, or choose another folder with work=..."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["steps"]

    def _changed(self, kept: dict[str, Any]) -> list[str]:
        now = dict(self.about)
        if self.grows in kept:
            now[self.grows] = now[self.grows][: len(kept[self.grows])]
        changed = [key for key in {**kept, **now} if key not in kept or key not in now or kept[key] != now[key]]
        return changed if kept else ["settings, which it does not tell"]

    def save(self, steps: int, force: bool = False) -> None:
        """Write after `steps` steps if it is time to."""
        if force or time.monotonic() - self.saved > self.every:
            with atomic(self.path) as temporary:
                parts = {name: part.state_dict() for name, part in self.parts.items()}
                torch.save({"steps": steps, "about": self.about, **parts}, temporary)
            self.saved = time.monotonic()


class Log:
    """A CSV of numbers by step, with a picture of its curves beside it."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, step: int, **numbers: float) -> None:
        new = not self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *numbers])
            writer.writerow([step, *(f"{number:.6g}" for number in numbers.values())])
        print(f"{self.path.stem} {step}  " + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()), flush=True)

    def draw(self) -> None:
        """Plot every column against the step, each in its own panel."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        with open(self.path) as file:
            names, *rows = csv.reader(file)
        table = np.array([[float(cell) for cell in row] for row in rows])
        figure, panels = pyplot.subplots(1, len(names) - 1, figsize=(4 * (len(names) - 1), 3), squeeze=False)
        for panel, name, column in zip(panels[0], names[1:], table[:, 1:].T, strict=True):
            panel.plot(table[:, 0], column, lw=1)
            panel.set_title(name)
        figure.tight_layout()
        with atomic(self.path.with_suffix(".png")) as temporary:
            figure.savefig(temporary, dpi=80)
        pyplot.close(figure)


def told(name: str, settings: Any) -> dict[str, Any]:
    """A stage's settings as plain data under dotted names."""
    return {f"{name}.{key}": value for key, value in to_dict(settings).items()}


def digest(arrays: Iterable[torch.Tensor | np.ndarray]) -> str:
    """A short SHA-256 of the bytes of arrays."""
    whole = hashlib.sha256()
    for x in arrays:
        if isinstance(x, torch.Tensor):
            x = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        whole.update(np.ascontiguousarray(x))
    return whole.hexdigest()[:16]


def generator(*key: int) -> np.random.Generator:
    """The random numbers that belong to a key such as (seed, stage, step)."""
    return np.random.default_rng(key)


def noise(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Standard normal float32 numbers from a numpy generator."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


class Pair:
    """Muon for weights that map features to features, kernels flattened to matrices, and AdamW for all else.

    Muon (Jordan et al., 2024) takes steps of AdamW's size here, as in arXiv 2502.16982.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], weight_decay: float = 0.0) -> None:
        self.matrices = matrices
        self.flat = [nn.Parameter(p.data.view(len(p), -1)) for p in matrices]  # share the weights' memory
        self.muon = torch.optim.Muon(self.flat, lr=1e-3, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adam = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, muon_lr: float, adam_lr: float) -> None:
        """One step with these learning rates; gradients are cleared."""
        for flat, p in zip(self.flat, self.matrices, strict=True):
            flat.grad = None if p.grad is None else p.grad.reshape(len(p), -1)
            p.grad = None
        for optimizer, lr in ((self.muon, muon_lr), (self.adam, adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
