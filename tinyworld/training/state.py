"""What every stage of the training needs: exact resumption, curves, random numbers by step."""

import csv
import hashlib
import pickle
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from utils.errors import UserError
from utils.figure import new_figure, save
from utils.files import atomic
from utils.settings import to_dict

STAGES = ("vae.pt", "long.pt", "short.pt", "backbone.pt", "fewstep.pt")  # each follows from those before it


class Checkpoint:
    """State of one training, written whole every `every` seconds.

    Whatever a step draws comes from `generator(seed, step)`, so a resumed run repeats the uninterrupted one.

    Args:
        parts: what has a `state_dict`, by name.
        about: all that the state depends on, as plain data: settings, seed, digests of what it starts from.
        grows: the one of these that may have become longer since, a list.
    """

    def __init__(self, path: Path, parts: dict[str, Any], about: dict[str, Any], grows: str = "", every: float = 120.0):
        self.path = path
        self.parts = parts
        self.about = about
        self.grows = grows
        self.every = every
        self.saved = time.monotonic()

    def resume(self) -> int:
        """Load what an earlier run left behind; the number of steps that it had done.

        Raises:
            UserError: it was made with other settings or from something else, or cannot be read.
        """
        if not self.path.exists():
            return 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            kept = state.get("about", {})
            steps = state["steps"]
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, BadZipFile, KeyError, AttributeError) as error:
            raise UserError(f"{self.path} is damaged; {self._remedy()}") from error
        changed = self._changed(kept)
        if changed:
            raise UserError(f"{self.path} was made with other {', '.join(changed)}; {self._remedy()}")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return steps

    def save(self, steps: int, force: bool = False) -> None:
        """Write after `steps` steps if it is time to."""
        if not force and time.monotonic() - self.saved <= self.every:
            return
        state = {"steps": steps, "about": self.about}
        for name, part in self.parts.items():
            state[name] = part.state_dict()
        with atomic(self.path) as temporary:
            torch.save(state, temporary)
        self.saved = time.monotonic()

    def _changed(self, kept: dict[str, Any]) -> list[str]:
        """Names of what differs between the kept state and this training."""
        if not kept:
            return ["settings, which it does not tell"]
        now = dict(self.about)
        if self.grows in kept:
            now[self.grows] = now[self.grows][: len(kept[self.grows])]
        missing = object()
        changed = []
        for key in {**kept, **now}:
            if kept.get(key, missing) != now.get(key, missing):
                changed.append(key)
        return changed

    def _remedy(self) -> str:
        stale = []
        for name in STAGES[STAGES.index(self.path.name) :]:
            if self.path.with_name(name).exists():
                stale.append(name)
        return f"delete {', '.join(stale)} in {self.path.parent}, or choose another folder with work=..."


class Log:
    """A CSV of numbers by step, with a picture of its curves beside it."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, step: int, **numbers: float) -> None:
        """Add a line to the file and print it."""
        new = not self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *numbers])
            writer.writerow([step, *(f"{number:.6g}" for number in numbers.values())])
        shown = [f"{name} {number:.4g}" for name, number in numbers.items()]
        print(f"{self.path.stem} {step}  {'  '.join(shown)}", flush=True)

    def draw(self) -> None:
        """Plot every column against the step, each in its own panel, unless the picture shows all lines already."""
        picture = self.path.with_suffix(".png")
        if picture.exists() and picture.stat().st_mtime_ns > self.path.stat().st_mtime_ns:
            return
        with open(self.path) as file:
            names, *rows = csv.reader(file)
        table = np.array(rows, float)
        figure = new_figure(4 * (len(names) - 1), 3)
        panels = figure.subplots(1, len(names) - 1, squeeze=False)[0]
        for panel, name, column in zip(panels, names[1:], table[:, 1:].T, strict=True):
            panel.plot(table[:, 0], column, lw=1)
            panel.set_title(name)
        save(figure, picture, dpi=80)


def under(name: str, settings: Any) -> dict[str, Any]:
    """A stage's settings as plain data under dotted names, `name.key`."""
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


def normal(rng: np.random.Generator, *shape: int, device: torch.device) -> torch.Tensor:
    """Standard normal float32 numbers from a numpy generator; on a GPU from one of its own, seeded by that."""
    if device.type == "cuda":  # a batch has millions, which a CPU takes longer to draw than the GPU to use
        own = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        return torch.randn(shape, generator=own, device=device)
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device)
