"""The corpus: scenes painted once, clips of them encoded once, captions and camera truth beside."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from tinyworld.captions import Meaning, caption
from tinyworld.context import BLOCK
from tinyworld.render import Gallery, film, paint
from tinyworld.settings import LatentSettings, WorldSettings
from tinyworld.training import Checkpoint, digest
from tinyworld.vae import encode, to_video
from tinyworld.world import HEIGHT, ONE_LATENT, VIEW, Scene, Shot, ahead, draw_scene, draw_shot, meaning, pixel_frames
from utils.errors import UserError
from utils.files import atomic
from wan.vae import normalisation

HELD_OUT = 1_000_000  # the first seed of the scenes that no training sees
FIRST_SEED = {"panoramas": 0, "held_out": HELD_OUT}  # the first seed of the scenes in a file


def paint_gallery(settings: WorldSettings, folder: Path) -> None:
    """Paint all scenes: `panoramas.npy` and `held_out.npy`, each [scenes, H, W, 3] uint8."""
    for name, count in (("held_out", settings.held_out), ("panoramas", settings.scenes)):
        path = folder / f"{name}.npy"
        if path.exists():
            if (there := len(np.load(path, mmap_mode="r"))) != count:
                raise UserError(
                    f"{path} holds {there} scenes and {count} are asked for; "
                    "delete it, or choose another folder with work=..."
                )
        else:
            pictures = np.stack([paint(draw_scene(FIRST_SEED[name] + i)) for i in range(count)])
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
        return film(paint(self.scene), self.scene, self.shot, self.frames)


def held_out(index: int, frames: int = 1) -> Clip:
    """The held-out clip with this number, of so many pixel frames."""
    return Clip(draw_scene(HELD_OUT + index), draw_shot(HELD_OUT + index), frames)


@dataclass(frozen=True)
class Corpus:
    """Encoded clips.

    Attributes:
        latents: [clips, F, C, h, w] bfloat16, normalised per channel, on the device to train on.
        camera: [clips, F] pixels, left edge of the view at each latent's last frame.
        ahead: [clips, F, 3] what the camera comes to next at each latent's last frame, see `world.ahead`.
        captions: one a clip.
    """

    latents: torch.Tensor
    camera: np.ndarray
    ahead: np.ndarray
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def inside(self, frames: np.ndarray) -> np.ndarray:
        """Indices into an encoded clip for a first block and a later stretch, [frames] indices into a video.

        A stretch later than the clip is long is one of those that it holds: as the camera's pace varies, the time
        does not say where it is.
        """
        gap = frames[-1] + 1 - len(frames)  # frames between the two
        spare = self.latents.shape[1] - len(frames)
        return np.where(frames < BLOCK, frames, frames - gap + gap % (spare + 1))


def gallery(folder: Path, name: str) -> Gallery:
    """The scenes painted as `name`: panoramas or held_out."""
    return Gallery(FIRST_SEED[name], np.load(folder / f"{name}.npy", mmap_mode="r"))


def encode_corpus(vae: AutoencoderKLWan, settings: LatentSettings, folder: Path) -> list[Corpus]:
    """Encode shots of the painted scenes: [long clips, short ones that only show how a video starts].

    Resumes from what was encoded before. The codec's config gets the long clips' mean and standard
    deviation per channel; all latents are normalised by them.
    """
    scenes = gallery(folder, "panoramas")
    long = _encode(vae, scenes, settings.clips, settings.frames, 0, settings.batch, folder / "long.pt")
    mean, std = long.float().mean((0, 1, 3, 4)), long.float().std((0, 1, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    first = settings.clips
    short = _encode(vae, scenes, settings.starts, settings.start_frames, first, settings.batch, folder / "short.pt")
    return [_corpus(vae, long, 0, len(scenes)), _corpus(vae, short, first, len(scenes))]


def normalised(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """Raw latents [..., C, h, w] to the zero mean and unit deviation that the backbone sees."""
    mean, std = (x.squeeze(-1) for x in normalisation(vae))  # each [C, 1, 1]
    return (z.to(vae.device) - mean) / std


class _Store:
    """Latents under work, [clips, F, C, h, w] bfloat16."""

    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"latents": self.latents}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.latents.copy_(state["latents"])


def _encode(vae, scenes: Gallery, clips: int, frames: int, first: int, batch: int, path: Path) -> torch.Tensor:
    """Raw latents of the shots with seeds first .. first + clips - 1."""
    store = _Store(torch.zeros(clips, frames, vae.config.z_dim, HEIGHT // 8, VIEW // 8, dtype=torch.bfloat16))
    about = {"number of clips": clips, "number of frames": frames, "first clip": first}
    about |= {**scenes.about(), "codec": digest(vae.state_dict().values())}
    checkpoint = Checkpoint(path, {"store": store}, about)
    for start in range(checkpoint.resume(), clips, batch):
        some = range(start, min(start + batch, clips))
        views = [scenes.film(i % len(scenes), draw_shot(first + i), pixel_frames(frames)) for i in some]
        store.latents[some.start : some.stop] = encode(vae, to_video(np.stack(views))).transpose(1, 2).bfloat16()
        checkpoint.save(some.stop)
    checkpoint.save(clips, force=True)
    return store.latents


def _corpus(vae: AutoencoderKLWan, latents: torch.Tensor, first: int, scenes: int) -> Corpus:
    shots = [(draw_scene(i % scenes), draw_shot(first + i)) for i in range(len(latents))]
    frames = pixel_frames(latents.shape[1])
    return Corpus(
        latents=normalised(vae, latents.float()).bfloat16(),
        camera=np.stack([shot.camera(frames)[::ONE_LATENT] for _, shot in shots]),
        ahead=np.stack([ahead(scene, shot, frames)[::ONE_LATENT] for scene, shot in shots]),
        captions=[caption(meaning(scene, shot)) for scene, shot in shots],
    )
