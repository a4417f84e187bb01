"""The corpus: scenes painted once, clips of them encoded once, captions and camera truth beside."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from tinyworld.captions import Meaning, caption
from tinyworld.render import paint
from tinyworld.settings import LatentSettings, WorldSettings
from tinyworld.training import Checkpoint, digest
from tinyworld.vae import encode, to_video
from tinyworld.world import HEIGHT, SPEED, TRAVEL, VIEW, Scene, Shot, draw_scene, draw_shot, film, meaning
from utils.errors import UserError
from utils.files import atomic
from wan.vae import normalisation

HELD_OUT = 1_000_000  # the first seed of the scenes that no training sees


def paint_gallery(settings: WorldSettings, folder: Path) -> None:
    """Paint all scenes: `panoramas.npy` (seeds 0..) and `held_out.npy` (seeds HELD_OUT..), [scenes, H, W, 3] uint8."""
    for name, first, count in (("held_out", HELD_OUT, settings.held_out), ("panoramas", 0, settings.scenes)):
        path = folder / f"{name}.npy"
        if path.exists():
            if (there := len(np.load(path, mmap_mode="r"))) != count:
                raise UserError(
                    f"{path} holds {there} scenes and {count} are asked for; "
                    "delete it, or choose another folder with work=..."
                )
        else:
            pictures = np.stack([paint(draw_scene(first + i)) for i in range(count)])
            with atomic(path) as temporary:
                np.save(temporary, pictures)


@dataclass(frozen=True)
class Clip:
    """A scene, filmed over so many pixel frames, and what is true about it; painted when its video is asked for."""

    scene: Scene
    shot: Shot
    frames: int

    @cached_property
    def meaning(self) -> Meaning:
        return meaning(self.scene, self.shot)

    @cached_property
    def caption(self) -> str:
        return caption(self.meaning)

    @cached_property
    def camera(self) -> np.ndarray:
        """[frames] pixels, left edge of the view."""
        return self.shot.camera(self.frames)

    @cached_property
    def video(self) -> np.ndarray:
        """[frames, HEIGHT, VIEW, 3] uint8."""
        return film(paint(self.scene), self.camera)


def held_out(index: int, frames: int = 1) -> Clip:
    """The held-out clip with this number, of so many pixel frames."""
    return Clip(draw_scene(HELD_OUT + index), draw_shot(HELD_OUT + index), frames)


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


def encode_corpus(vae: AutoencoderKLWan, settings: LatentSettings, folder: Path) -> list[Corpus]:
    """Encode shots of the painted scenes: [long clips, short ones that only show how a video starts].

    Resumes from what was encoded before. The codec's config gets the long clips' mean and standard
    deviation per channel; all latents are normalised by them.
    """
    panoramas = np.load(folder / "panoramas.npy", mmap_mode="r")
    long = _encode(vae, panoramas, settings.clips, settings.frames, 0, settings.batch, folder / "long.pt")
    mean, std = long.float().mean((0, 1, 3, 4)), long.float().std((0, 1, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    first = settings.clips
    short = _encode(vae, panoramas, settings.starts, settings.start_frames, first, settings.batch, folder / "short.pt")
    return [_corpus(vae, long, 0, len(panoramas)), _corpus(vae, short, first, len(panoramas))]


def normalised(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """Raw latents [..., C, h, w] to the zero mean and unit deviation that the backbone sees."""
    mean, std = (x.squeeze(-1) for x in normalisation(vae))  # each [C, 1, 1]
    return (z - mean) / std


class _Store:
    """Latents under work, [clips, F, C, h, w] bfloat16."""

    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"latents": self.latents}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.latents.copy_(state["latents"])


def _encode(vae, panoramas, clips: int, frames: int, first: int, batch: int, path: Path) -> torch.Tensor:
    """Raw latents of the shots with seeds first .. first + clips - 1."""
    store = _Store(torch.zeros(clips, frames, vae.config.z_dim, HEIGHT // 8, VIEW // 8, dtype=torch.bfloat16))
    about = {"number of clips": clips, "number of frames": frames, "first clip": first}
    about |= {"world.scenes": digest([panoramas]), "codec": digest(vae.state_dict().values())}
    checkpoint, pixel_frames = Checkpoint(path, {"store": store}, about), 4 * (frames - 1) + 1
    for start in range(checkpoint.resume(), clips, batch):
        some = range(start, min(start + batch, clips))
        cameras = [draw_shot(first + i).camera(pixel_frames) for i in some]
        views = [film(panoramas[i % len(panoramas)], camera) for i, camera in zip(some, cameras, strict=True)]
        store.latents[some.start : some.stop] = encode(vae, to_video(np.stack(views))).transpose(1, 2).bfloat16()
        checkpoint.save(some.stop)
    checkpoint.save(clips, force=True)
    return store.latents


def _corpus(vae: AutoencoderKLWan, latents: torch.Tensor, first: int, scenes: int) -> Corpus:
    shots = [draw_shot(first + i) for i in range(len(latents))]
    return Corpus(
        latents=normalised(vae, latents.float()).bfloat16(),
        camera=np.stack([shot.camera(4 * latents.shape[1] - 3)[::4] for shot in shots]),
        period=np.full(len(shots), 2 * TRAVEL // (4 * SPEED)),
        captions=[caption(meaning(draw_scene(i % scenes), shot)) for i, shot in enumerate(shots)],
    )
