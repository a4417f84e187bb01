"""Clips of latents, and the truth of what each of their frames shows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ae.dataset import open_latents
from utils.errors import UserError


@dataclass(frozen=True)
class Views:
    """What each frame of a clip shows of a scene that a camera passes along: an interval of positions.

    Attributes:
        camera: position of the view's left edge for each frame, in any unit.
        view: width of the view in that unit.
        loop: length of a scene that closes on itself, or None.
    """

    camera: tuple[float, ...]
    view: float
    loop: float | None = None

    def shown(self, bins: int = 64) -> Tensor:
        """[F, positions] bool: which positions, `bins` to a view, each frame shows."""
        step = self.view / bins
        leftmost = min(self.camera)
        first = torch.tensor([round((x - leftmost) / step) for x in self.camera])
        width = int(first.max()) + bins
        if self.loop is not None:
            width = round(self.loop / step)
        columns = (first[:, None] + torch.arange(bins)) % width
        return torch.zeros(len(first), width, dtype=torch.bool).scatter_(1, columns, True)


def read_clips(paths: list[Path]) -> Iterator[tuple[Path, Tensor]]:
    """Clips [F, C, H, W] float32 of one shape; others are named, and left out."""
    shape = None
    for path in paths:
        try:
            latents = open_latents(path).float()
            shape = shape or latents.shape[1:]
            if latents.shape[1:] != shape:
                raise UserError(f"latent file {path} has other sizes than the files before it")
            if not latents.sum().isfinite():
                raise UserError(f"latent file {path} holds NaN or infinity")
        except UserError as error:
            print(f"skipped: {error}", flush=True)
        else:
            yield path, latents


def read_views(path: Path, frames: int) -> Views | None:
    """The camera's truth beside a latent file, if there is one: `latent_000007.truth.json`.

    Raises:
        UserError: it is not of the form that docs/retrieval_encoder.md gives, or of another number of frames.
    """
    truth = path.with_suffix(".truth.json")
    if not truth.is_file():
        return None
    try:
        views = _parse(json.loads(truth.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"camera": [...], "view": width, "loop": null}'
        raise UserError(f"{truth} is not of the form {form}: {error}") from error
    if len(views.camera) != frames:
        raise UserError(f"{truth} gives {len(views.camera)} camera positions and {path.name} has {frames} frames")
    return views


def _parse(content: dict) -> Views:
    camera = tuple(map(float, content["camera"]))
    view = float(content["view"])
    loop = content.get("loop")
    views = Views(camera, view, None if loop is None else float(loop))
    if not torch.tensor([*camera, view, views.loop or 0.0]).isfinite().all():
        raise ValueError("a number is not finite")
    if view <= 0 or (views.loop is not None and views.loop < view):
        raise ValueError("view must be above 0, and a loop no shorter than a view")
    return views
