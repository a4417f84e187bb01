"""The corpus: scenes painted once, clips of them encoded once, captions and camera truth beside."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from tinyworld.captions import caption
from tinyworld.render import paint
from tinyworld.settings import LatentSettings, WorldSettings
from tinyworld.training import Checkpoint
from tinyworld.vae import encode, to_video
from tinyworld.world import HEIGHT, TRAVEL, VIEW, draw_scene, draw_shot, film, meaning
from utils.files import atomic

HELD_OUT = 1_000_000  # the first seed of the scenes that no training sees


def paint_gallery(settings: WorldSettings, folder: Path) -> None:
    """Paint all scenes: `panoramas.npy` (seeds 0..) and `held_out.npy` (seeds HELD_OUT..), [scenes, H, W, 3] uint8."""
    for name, first, count in (("held_out", HELD_OUT, settings.held_out), ("panoramas", 0, settings.scenes)):
        path = folder / f"{name}.npy"
        if not path.exists():
            pictures = np.stack([paint(draw_scene(first + i)) for i in range(count)])
            with atomic(path) as temporary:
                np.save(temporary, pictures)


def held_out(index: int, speeds: tuple[int, ...]):
    """(scene, shot, caption) of a held-out clip."""
    scene, shot = draw_scene(HELD_OUT + index), draw_shot(HELD_OUT + index, speeds)
    return scene, shot, caption(meaning(scene, shot))


@dataclass(frozen=True)
class Corpus:
    """Encoded clips.

    Attributes:
        latents: [clips, F, C, h, w] bfloat16, normalised per channel.
        camera: [clips, F] pixels, left edge of the view at each latent's last frame.
        period: [clips] latent frames after which a clip repeats itself: the camera's way there and back.
        captions: one a clip.
    """

    latents: torch.Tensor
    camera: np.ndarray
    period: np.ndarray
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def clip(self, index: int, frames: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Latents [len(frames), C, h, w] float32 and camera [len(frames)] of any latent frames, however late.

        The camera's way is periodic, so a frame beyond the clip's end is one of the frames that it holds.
        """
        period = self.period[index]
        inside = np.where(frames < self.latents.shape[1], frames, (frames - 1) % period + 1)
        return self.latents[index, inside].float(), self.camera[index, inside]


def encode_corpus(vae: AutoencoderKLWan, settings: LatentSettings, world: WorldSettings, folder: Path) -> list[Corpus]:
    """Encode shots of the painted scenes: [long clips, short ones that only show how a video starts].

    Resumes from what was encoded before. The codec's config gets the long clips' mean and standard
    deviation per channel; all latents are normalised by them.
    """
    panoramas, speeds = np.load(folder / "panoramas.npy", mmap_mode="r"), tuple(world.speeds)
    long = _encode(vae, panoramas, settings.clips, settings.frames, 0, speeds, settings.batch, folder / "long.pt")
    mean, std = long.float().mean((0, 1, 3, 4)), long.float().std((0, 1, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    first = settings.clips
    short = _encode(
        vae, panoramas, settings.starts, settings.start_frames, first, speeds, settings.batch, folder / "short.pt"
    )
    return [_corpus(vae, long, 0, len(panoramas), speeds), _corpus(vae, short, first, len(panoramas), speeds)]


def normalised(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """Raw latents [..., C, h, w] to the zero mean and unit deviation that the backbone sees."""
    mean, std = (torch.tensor(vae.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    return (z - mean) / std


def raw(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """The inverse of `normalised`."""
    mean, std = (torch.tensor(vae.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    return z * std + mean


class _Store:
    """Latents under work, [clips, F, C, h, w] bfloat16."""

    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"latents": self.latents}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.latents.copy_(state["latents"])


def _encode(vae, panoramas, clips: int, frames: int, first: int, speeds, batch: int, path: Path) -> torch.Tensor:
    """Raw latents of the shots with seeds first .. first + clips - 1."""
    store = _Store(torch.zeros(clips, frames, vae.config.z_dim, HEIGHT // 8, VIEW // 8, dtype=torch.bfloat16))
    checkpoint, pixel_frames = Checkpoint(path, {"store": store}), 4 * (frames - 1) + 1
    for start in range(checkpoint.resume(), clips, batch):
        some = range(start, min(start + batch, clips))
        cameras = [draw_shot(first + i, speeds).camera(pixel_frames) for i in some]
        views = [film(panoramas[i % len(panoramas)], camera) for i, camera in zip(some, cameras, strict=True)]
        store.latents[some.start : some.stop] = encode(vae, to_video(np.stack(views))).transpose(1, 2).bfloat16()
        checkpoint.save(some.stop)
    checkpoint.save(clips, force=True)
    return store.latents


def _corpus(vae: AutoencoderKLWan, latents: torch.Tensor, first: int, scenes: int, speeds) -> Corpus:
    shots = [draw_shot(first + i, speeds) for i in range(len(latents))]
    return Corpus(
        latents=normalised(vae, latents.float()).bfloat16(),
        camera=np.stack([shot.camera(4 * latents.shape[1] - 3)[::4] for shot in shots]),
        period=np.array([2 * TRAVEL // (4 * shot.speed) for shot in shots]),
        captions=[caption(meaning(draw_scene(i % scenes), shot)) for i, shot in enumerate(shots)],
    )
