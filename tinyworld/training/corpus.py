"""The corpus: clips of painted scenes encoded once, with captions and the camera's truth."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from tinyworld.training.gallery import Gallery
from tinyworld.training.settings import LatentSettings
from tinyworld.training.state import Checkpoint, digest
from tinyworld.training.vae import encode
from tinyworld.training.workers import made_ahead
from tinyworld.world.captions import caption
from tinyworld.world.scene import HEIGHT, ONE_LATENT, VIEW, ahead, draw_scene, draw_shot, meaning, pixel_frames
from wan.vae import normalisation


@dataclass(frozen=True)
class Corpus:
    """Encoded clips.

    Attributes:
        latents: [clips, F, C, h, w] bfloat16, normalised per channel.
        camera: [clips, F] pixels, left edge of the view at each latent's last frame.
        ahead: [clips, F, 3] what the camera comes to next at each latent's last frame, see `scene.ahead`.
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
        before_the_gap = frames == np.arange(len(frames))
        return np.where(before_the_gap, frames, frames - gap + gap % (spare + 1))


def encode_corpus(
    vae: AutoencoderKLWan,
    scenes: Gallery,
    settings: LatentSettings,
    folder: Path,
    normalise: bool = True,
    workers: int = 0,
) -> list[Corpus]:
    """Encode shots of the painted scenes: [long clips, short ones that only show how a video starts].

    Resumes from what was encoded before. The codec's config gets the long clips' mean and standard
    deviation per channel, unless `normalise` is off and it has them: then what it encodes is normalised already.
    So many `workers` film beside.
    """
    first_start = settings.clips
    encoded = partial(_encode, vae, scenes, batch=settings.batch, workers=workers)
    long = encoded(settings.clips, settings.frames, 0, path=folder / "long.pt")
    short = encoded(settings.starts, settings.start_frames, first_start, path=folder / "short.pt")
    if normalise:
        mean = long.float().mean((0, 1, 3, 4))
        std = long.float().std((0, 1, 3, 4))
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
        long, short = normalised(vae, long), normalised(vae, short)
    return [_corpus(long, 0, scenes), _corpus(short, first_start, scenes)]


def normalised(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """Raw latents [..., C, h, w] to the zero mean and unit deviation that the backbone sees."""
    mean, std = normalisation(vae)  # each [C, 1, 1, 1]
    return ((z.float() - mean.squeeze(-1).to(z.device)) / std.squeeze(-1).to(z.device)).to(z.dtype)


class _Store:
    """Latents under work, [clips, F, C, h, w] bfloat16."""

    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"latents": self.latents}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.latents.copy_(state["latents"])


def _encode(
    vae: AutoencoderKLWan,
    scenes: Gallery,
    clips: int,
    frames: int,
    first: int,
    batch: int,
    workers: int,
    path: Path,
) -> torch.Tensor:
    """Latents of the shots with seeds first .. first + clips - 1, normalised if the codec has a mean and deviation."""
    store = _Store(torch.zeros(clips, frames, vae.config.z_dim, HEIGHT // 8, VIEW // 8, dtype=torch.bfloat16))
    about = {
        "number of clips": clips,
        "number of frames": frames,
        "first clip": first,
        **scenes.about(),
        "codec": digest(vae.state_dict().values()),
    }
    checkpoint = Checkpoint(path, {"store": store}, about)
    done = checkpoint.resume()

    def film(clip: int) -> np.ndarray:
        return scenes.film(clip % len(scenes), draw_shot(first + clip), pixel_frames(frames))

    filmed = made_ahead(film, range(done, clips), workers)
    for start in range(done, clips, batch):
        stop = min(start + batch, clips)
        videos = [next(filmed) for _ in range(start, stop)]
        store.latents[start:stop] = encode(vae, np.stack(videos)).bfloat16()
        checkpoint.save(stop)
    checkpoint.save(clips, force=True)
    return store.latents


def _corpus(latents: torch.Tensor, first: int, scenes: Gallery) -> Corpus:
    frames = pixel_frames(latents.shape[1])
    camera, coming, captions = [], [], []
    for clip in range(len(latents)):
        scene = draw_scene(scenes.first + clip % len(scenes))
        shot = draw_shot(first + clip)
        camera.append(shot.camera(frames)[::ONE_LATENT])
        coming.append(ahead(scene, shot, frames)[::ONE_LATENT])
        captions.append(caption(meaning(scene, shot)))
    return Corpus(latents, np.stack(camera), np.stack(coming), captions)
