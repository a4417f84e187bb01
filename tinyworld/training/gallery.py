"""The scenes that the training films, painted once and kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyworld.training.settings import WorldSettings
from tinyworld.training.state import digest
from tinyworld.training.workers import made_ahead
from tinyworld.world.film import HELD_OUT, film
from tinyworld.world.render import paint
from tinyworld.world.scene import Shot, draw_scene, draw_shot
from utils.errors import UserError
from utils.files import atomic


@dataclass(frozen=True)
class Gallery:
    """Painted scenes, [scenes, HEIGHT, WIDTH, 3] uint8: those of the seeds `first`, `first` + 1, ..."""

    first: int
    panoramas: np.ndarray

    def __len__(self) -> int:
        return len(self.panoramas)

    def about(self) -> dict[str, str]:
        """What a training state that depends on these scenes and on how they are filmed keeps of them."""
        return {"world.scenes": digest([self.panoramas]), "world.videos": digest([self.film(0, draw_shot(0), 65)])}

    def film(self, index: int, shot: Shot, frames: int) -> np.ndarray:
        """[frames, HEIGHT, VIEW, 3] uint8 of the scene with this index."""
        return film(self.panoramas[index], draw_scene(self.first + index), shot, frames)


def paint_galleries(settings: WorldSettings, folder: Path, workers: int = 0) -> None:
    """Paint all scenes, in so many `workers`: `panoramas.npy` and `held_out.npy`, each [scenes, H, W, 3] uint8."""
    galleries = (("held_out", HELD_OUT, settings.held_out), ("panoramas", settings.first, settings.scenes))
    for name, first, count in galleries:
        path = folder / f"{name}.npy"
        if path.exists():
            _require_scenes(path, first, count)
            continue
        pictures = np.stack([*made_ahead(_painted, range(first, first + count), workers)])
        with atomic(path) as temporary:
            np.save(temporary, pictures)


def _painted(seed: int) -> np.ndarray:
    return paint(draw_scene(seed))


def load_gallery(folder: Path, name: str, first: int) -> Gallery:
    """The scenes painted as `name`, panoramas or held_out; the first one's seed is `first`."""
    return Gallery(first, np.load(folder / f"{name}.npy", mmap_mode="r"))


def _require_scenes(path: Path, first: int, count: int) -> None:
    remedy = "delete it, or choose another folder with work=..."
    try:
        pictures = np.load(path, mmap_mode="r")
        there = len(pictures)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} holds no scenes: {' '.join(str(error).split())}; {remedy}") from error
    if there != count:
        raise UserError(f"{path} holds {there} scenes and {count} are asked for; {remedy}")
    if not np.array_equal(pictures[0], paint(draw_scene(first))):
        raise UserError(f"{path} holds other scenes than those from seed {first} on; {remedy}")
