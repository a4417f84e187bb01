"""How good the shipped weights are: `python -m tinyworld.report [key=value ...]`.

Judges true, reconstructed and generated videos of the same held-out captions, prints the table as
Markdown, and draws the contact sheet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline import load
from pipeline.pipeline import Sample
from tinyworld import judge
from tinyworld.captions import Meaning
from tinyworld.captions import caption as write_caption
from tinyworld.corpus import HELD_OUT
from tinyworld.render import paint
from tinyworld.vae import decode, encode, psnr, to_video
from tinyworld.world import FPS, Shot, draw_scene, draw_shot, film, meaning
from utils.config import load_settings
from utils.errors import run
from utils.files import atomic, require_writable, write_json
from wan.vae import load_vae


@dataclass(frozen=True)
class ReportSettings:
    """What is judged: `clips` held-out captions over their first seconds, `long_clips` over `long_frames` latents."""

    config: str = "configs/tinyworld_native.yaml"
    model_root: str = "wan_models"
    generator_ckpt: str = "checkpoints/tinyworld.safetensors"
    steps: list[int] | None = None
    clips: int = 32
    short_frames: int = 15
    long_clips: int = 8
    long_frames: int = 120
    seed: int = 0
    folder: str = "runs/tinyworld/report"
    sheet_clips: int = 3


@dataclass(frozen=True)
class Clip:
    """A held-out clip: its true video [T, H, W, 3] and what is true about it."""

    video: np.ndarray
    shot: Shot
    meaning: Meaning
    caption: str


def main() -> None:
    settings = load_settings(ReportSettings, None, sys.argv[1:])
    folder = require_writable(settings.folder)
    torch.manual_seed(settings.seed)
    short = [held_out_clip(i, 4 * settings.short_frames - 3) for i in range(settings.clips)]
    long = [held_out_clip(i, 4 * settings.long_frames - 3) for i in range(settings.long_clips)]
    codec = load_vae(Path(settings.model_root) / "tinyworld" / "vae")
    again = [reconstruct(codec, clip.video) for clip in short]
    films = generate(settings, [clip.caption for clip in short], settings.short_frames)
    long_again = [reconstruct(codec, clip.video) for clip in long]
    long_films = generate(settings, [clip.caption for clip in long], settings.long_frames)
    shuffled = [clip.meaning for clip in short[1:] + short[:1]]
    columns = {
        "true": {**first_seconds([c.video for c in short], short), **whole([c.video for c in long], long)},
        "reconstructed": {**first_seconds(again, short), **whole(long_again, long)},
        "generated": {**first_seconds(films, short), **whole(long_films, long)},
        "true, other caption": first_seconds([c.video for c in short], short, shuffled),
        "true, recoloured": first_seconds([c.video[..., [1, 2, 0]] for c in short], short),
    }
    columns["reconstructed"]["PSNR, dB"] = float(
        np.mean([_psnr(a, c.video) for a, c in zip(long_again, long, strict=True)])
    )
    write_json(folder / "table.json", columns)
    print(markdown(columns))
    sheet(folder / "sheet.png", settings.sheet_clips, [c.video for c in long], long_again, long_films)


def held_out_clip(index: int, frames: int) -> Clip:
    """The held-out clip with this number."""
    scene, shot = draw_scene(HELD_OUT + index), draw_shot(HELD_OUT + index)
    what = meaning(scene, shot)
    return Clip(film(paint(scene), shot.camera(frames)), shot, what, write_caption(what))


def reconstruct(codec, video: np.ndarray) -> np.ndarray:
    """A video [T, H, W, 3] uint8 through encoder and decoder."""
    out = decode(codec, encode(codec, to_video(video[None])))[0]
    return _bytes(out.permute(1, 2, 3, 0))


def generate(settings: ReportSettings, captions: list[str], frames: int, batch: int = 8) -> list[np.ndarray]:
    """Videos of the captions, each [T, H, W, 3] uint8, by the pipeline that users have."""
    chosen = {"denoising_step_list": settings.steps} if settings.steps else {}
    pipe = load(
        settings.config,
        captions,
        model_root=settings.model_root,
        generator_ckpt=settings.generator_ckpt,
        num_output_frames=frames,
        seed=settings.seed,
        **chosen,
    )
    videos = []
    for first in range(0, len(captions), batch):
        samples = [Sample(caption, first + i) for i, caption in enumerate(captions[first : first + batch])]
        videos.extend(np.concatenate(list(pipe.frames(samples)), axis=1))
    return videos


def first_seconds(
    videos: list[np.ndarray], clips: list[Clip], meanings: list[Meaning] | None = None
) -> dict[str, float]:
    """Shares of the videos whose first 3 s show what the caption says."""
    meanings = meanings or [clip.meaning for clip in clips]
    verdicts = [judge.verdict(video, what) for video, what in zip(videos, meanings, strict=True)]
    return {f"{name}, first 3 s": float(np.mean([v[name] for v in verdicts])) for name in verdicts[0]}


def whole(videos: list[np.ndarray], clips: list[Clip]) -> dict[str, float]:
    """What the videos do over 10 and 30 s."""
    pairs = list(zip(videos, clips, strict=True))
    kept = np.sum([judge.persistence(video[: 10 * FPS], clip.shot) for video, clip in pairs], 0)
    late = np.sum([judge.persistence(video, clip.shot) for video, clip in pairs], 0)
    still = [judge.setting(video[-FPS:]) == (clip.meaning.ground, clip.meaning.time) for video, clip in pairs]
    return {
        "camera as trained, 10 s": float(np.mean([judge.moves_as_trained(v[: 10 * FPS], c.shot) for v, c in pairs])),
        "camera as trained, 30 s": float(np.mean([judge.moves_as_trained(v, c.shot) for v, c in pairs])),
        "turns in 30 s": float(np.mean([judge.turns(v) for v, c in pairs])),
        "objects kept in view, 10 s": float(kept[0] / max(kept[1], 1)),
        "objects kept in view, 30 s": float(late[0] / max(late[1], 1)),
        "ground and time in the last second": float(np.mean(still)),
        "same place a lap later, dB": float(np.mean([min(judge.revisit_psnr(v), 99.0) for v, _ in pairs])),
    }


def markdown(columns: dict[str, dict[str, float]]) -> str:
    """The table, a row for each measure."""
    rows = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for row in rows:
        cells = [f"{column[row]:.2f}" if row in column else "" for column in columns.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sheet(path: Path, clips: int, *kinds: list[np.ndarray]) -> None:
    """Frames at 1, 10 and 30 s: a row for each clip, three columns for each kind of video."""
    rows = []
    for i in range(clips):
        frames = [video[i][min(FPS * s, len(video[i]) - 1)] for video in kinds for s in (1, 10, 30)]
        rows.append(np.concatenate([np.pad(f, ((2, 2), (2, 2), (0, 0)), constant_values=255) for f in frames], 1))
    picture = Image.fromarray(np.concatenate(rows))
    with atomic(path) as temporary:
        picture.resize((picture.width * 2, picture.height * 2)).save(temporary, optimize=True)


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return psnr(np.square((a.astype(np.float32) - b.astype(np.float32)) / 127.5).mean())


def _bytes(video: torch.Tensor) -> np.ndarray:
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()


if __name__ == "__main__":
    run(main)
