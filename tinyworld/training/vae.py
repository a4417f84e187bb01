"""The miniature video codec: AutoencoderKLWan in its residual layout, 8x in space and 4x in time."""

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from einops import rearrange
from torch.nn.functional import l1_loss, mse_loss

from tinyworld.training.bf16_linear import bf16_is_fast
from tinyworld.training.gallery import Gallery
from tinyworld.training.muon import MuonAdamW
from tinyworld.training.settings import VaeSettings, VaeStage
from tinyworld.training.state import Checkpoint, Log, generator, normal, under
from tinyworld.world.captions import DIRECTIONS
from tinyworld.world.scene import HEIGHT, TRAVEL, VIEW, Shot
from wan.vae import StreamingDecoder
from wan.vae import encode as encode_exactly

PATCH = 2


def build(settings: VaeSettings) -> AutoencoderKLWan:
    """An untrained codec; its latents have HEIGHT / 8 x VIEW / 8 places and 1 + (frames - 1) / 4 frames."""
    return AutoencoderKLWan(
        base_dim=settings.base_dim,
        z_dim=settings.z_dim,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        patch_size=PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        latents_mean=[0.0] * settings.z_dim,
        latents_std=[1.0] * settings.z_dim,
    )


def train(
    settings: VaeSettings, gallery: Gallery, held_out: Gallery, folder: Path, seed: int, device: torch.device
) -> AutoencoderKLWan:
    """Train on clips of painted scenes; resumes from `folder`."""
    torch.manual_seed(seed)
    vae = build(settings).train().to(device)
    optimizer = _optimizer(vae)
    about = {"seed": seed, **under("vae", settings), **gallery.about()}
    del about["vae.check_clips"]
    checkpoint = Checkpoint(folder / "vae.pt", {"model": vae, "optimizer": optimizer}, about, grows="vae.stages")
    log = Log(folder / "vae.csv")
    done = checkpoint.resume()
    first = 0  # step of the stage
    for stage in settings.stages:
        started = time.monotonic()
        for step in range(max(done, first), first + stage.steps):
            lr = _learning_rate(stage, step - first)
            rng = generator(seed, 10, step)
            clips = []
            for _ in range(stage.batch):
                clip = draw_clip(gallery, stage.frames, rng)
                clips.append(_crop(clip, stage, rng))
            loss, mse = _loss(vae, to_video(np.stack(clips)).to(device), stage, rng)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step(lr, lr)
            if step % 25 == 24:
                seconds = (time.monotonic() - started) / 25
                log.write(step + 1, loss=loss.item(), psnr=psnr(mse), lr=lr, seconds=seconds)
                started = time.monotonic()
            checkpoint.save(step + 1)
        first += stage.steps
    if done < first:
        checkpoint.save(first, force=True)
        measured = reconstruction(vae.eval(), held_out, seed, settings.check_clips)
        log.write(first, loss=float("nan"), psnr=measured, lr=0.0, seconds=0.0)
        log.draw()
    return vae.eval()


def encode(vae: AutoencoderKLWan, clips: np.ndarray) -> torch.Tensor:
    """Clips [B, frames, H, W, 3] uint8 to latents [B, F, C, H / 8, W / 8], computed in bfloat16
    where that is fast.

    The latents are normalised by the mean and the deviation in the codec's config, which are 0 and 1 until
    `corpus.encode_corpus` has measured them.
    """
    with torch.autocast(vae.device.type, torch.bfloat16, bf16_is_fast(vae.device)):
        return encode_exactly(vae, to_video(clips))


def reconstruct(vae: AutoencoderKLWan, clips: np.ndarray) -> torch.Tensor:
    """Clips [B, frames, H, W, 3] uint8 through encoder and decoder, to video [B, frames, 3, H, W] in [-1, 1]."""
    latents = encode(vae, clips)
    with torch.autocast(vae.device.type, torch.bfloat16, bf16_is_fast(vae.device)):
        return StreamingDecoder(vae)(latents).float().cpu()


def reconstruction(vae: AutoencoderKLWan, gallery: Gallery, seed: int, clips: int, frames: int = 65) -> float:
    """PSNR in dB of whole views over clips of held-out scenes, averaged over clips, latents exact."""
    each = []
    for number in range(clips):
        clip = draw_clip(gallery, frames, generator(seed, 11, number), number % len(gallery))[None]
        each.append(psnr(mse_loss(reconstruct(vae, clip), to_video(clip)).item()))
    return float(np.mean(each))


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB for videos in [-1, 1]."""
    return 10 * np.log10(4 / max(mse, 1e-12))


def draw_clip(gallery: Gallery, frames: int, rng: np.random.Generator, index: int | None = None) -> np.ndarray:
    """A clip of a scene from a random place of a camera's way, turns included.

    Args:
        index: of the scene; None draws one.

    Returns:
        [frames, HEIGHT, VIEW, 3] uint8.
    """
    if index is None:
        index = int(rng.integers(len(gallery)))
    start = int(rng.integers(TRAVEL + 1))
    direction = str(rng.choice(DIRECTIONS))
    shot = Shot(start, direction, int(rng.integers(2**31)))
    return gallery.film(index, shot, frames)


def to_video(clips: np.ndarray) -> torch.Tensor:
    """uint8 [B, frames, H, W, 3] to float [B, frames, 3, H, W] in [-1, 1]."""
    pixels = rearrange(torch.from_numpy(clips), "b t h w c -> b t c h w")
    return pixels.float().div_(127.5).sub_(1)


def _loss(
    vae: AutoencoderKLWan, video: torch.Tensor, stage: VaeStage, rng: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """L1 + MSE + L1 of the picture's gradients; the noise keeps neighbouring latents alike. And the MSE alone."""
    video = rearrange(video, "b t c h w -> b c t h w")
    with torch.autocast(video.device.type, torch.bfloat16, bf16_is_fast(video.device)):
        z = vae.encode(video).latent_dist.mode()
        noisy = z + stage.noise * z.detach().float().std() * normal(rng, *z.shape, device=z.device)
        got = _decode(vae, noisy)
    got = got.float()
    z = z.float()
    edges = 0
    for axis in (-1, -2):
        edges = edges + l1_loss(got.diff(dim=axis), video.diff(dim=axis))
    mse = mse_loss(got, video)
    return l1_loss(got, video) + stage.mse * mse + 0.5 * edges + 1e-5 * z.square().mean(), mse.item()


def _decode(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """As `vae.decode`, without its clamp, which has no gradient where it bites."""
    vae.clear_cache()
    z = vae.post_quant_conv(z)
    chunks = []
    for frame in range(z.shape[2]):
        latent = z[:, :, frame : frame + 1]
        chunks.append(vae.decoder(latent, feat_cache=vae._feat_map, feat_idx=[0], first_chunk=frame == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, 2), PATCH)


def _learning_rate(stage: VaeStage, step: int) -> float:
    """It falls exponentially over the stage."""
    part = step / max(stage.steps - 1, 1)
    return stage.lr * (stage.lr_end / stage.lr) ** part


def _optimizer(vae: AutoencoderKLWan) -> MuonAdamW:
    """Muon for all kernels but those at the ends of the encoder and the decoder."""
    kernels, others = [], []
    for name, parameter in vae.named_parameters():
        at_an_end = "conv_in" in name or "conv_out" in name or "quant_conv" in name
        is_kernel = parameter.ndim >= 4 and parameter.shape[0] > 1
        if is_kernel and not at_an_end:
            kernels.append(parameter)
        else:
            others.append(parameter)
    return MuonAdamW(kernels, others)


def _crop(clip: np.ndarray, stage: VaeStage, rng: np.random.Generator) -> np.ndarray:
    top = rng.integers(0, HEIGHT - stage.height + 1)
    left = rng.integers(0, VIEW - stage.width + 1)
    return clip[:, top : top + stage.height, left : left + stage.width]
