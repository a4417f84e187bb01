"""The miniature video codec: AutoencoderKLWan in its residual layout, 8x in space and 4x in time."""

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch.nn.functional import l1_loss, mse_loss

from tinyworld.captions import DIRECTIONS
from tinyworld.render import Gallery
from tinyworld.settings import VaeSettings, VaeStage
from tinyworld.training import Checkpoint, Log, Pair, generator, noise, told
from tinyworld.world import HEIGHT, TRAVEL, VIEW, Shot

PATCH = 2


def build(settings: VaeSettings) -> AutoencoderKLWan:
    """An untrained codec; latents are [B, z_dim, F, HEIGHT/8, VIEW/8] with F = 1 + (frames - 1) / 4."""
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
    about = {"seed": seed, **told("vae", settings), **gallery.about()}
    del about["vae.check_clips"]
    checkpoint = Checkpoint(folder / "vae.pt", {"model": vae, "optimizer": optimizer}, about, grows="vae.stages")
    log, done, first = Log(folder / "vae.csv"), checkpoint.resume(), 0
    for stage in settings.stages:
        started = time.monotonic()
        for step in range(max(done, first), first + stage.steps):
            part = (step - first) / max(stage.steps - 1, 1)
            lr = stage.lr * (stage.lr_end / stage.lr) ** part
            rng = generator(seed, 10, step)
            clips = [_crop(draw_clip(gallery, stage.frames, rng), stage, rng) for _ in range(stage.batch)]
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
    vae.eval()
    return vae


def reconstruction(vae: AutoencoderKLWan, gallery: Gallery, seed: int, clips: int, frames: int = 65) -> float:
    """PSNR in dB of whole views over clips of held-out scenes, averaged over clips, latents exact."""
    each = []
    for i in range(clips):
        video = to_video(draw_clip(gallery, frames, generator(seed, 11, i), i % len(gallery))[None])
        each.append(psnr(mse_loss(decode(vae, encode(vae, video)).clamp(-1, 1), video).item()))
    return float(np.mean(each))


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB for videos in [-1, 1]."""
    return 10 * np.log10(4 / max(mse, 1e-12))


def draw_clip(gallery: Gallery, frames: int, rng: np.random.Generator, index: int | None = None) -> np.ndarray:
    """A clip of a scene, a random one if none is told, from a random place of a camera's way, turns included.

    Returns:
        [frames, HEIGHT, VIEW, 3] uint8.
    """
    if index is None:
        index = int(rng.integers(len(gallery)))
    shot = Shot(int(rng.integers(TRAVEL + 1)), str(rng.choice(DIRECTIONS)), int(rng.integers(2**31)))
    return gallery.film(index, shot, frames)


def to_video(clips: np.ndarray) -> torch.Tensor:
    """uint8 [B, frames, H, W, 3] to float [B, 3, frames, H, W] in [-1, 1]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


@torch.no_grad()
def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Video [B, 3, frames, H, W] in [-1, 1] to raw latents [B, z_dim, F, H/8, W/8] in main memory."""
    with torch.autocast(vae.device.type, torch.bfloat16):
        return vae.encode(video.to(vae.device)).latent_dist.mode().float().cpu()


@torch.no_grad()
def decode(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """Raw latents [B, z_dim, F, h, w] to video [B, 3, frames, 8h, 8w] in main memory, unclamped."""
    with torch.autocast(vae.device.type, torch.bfloat16):
        return _decode(vae, z.to(vae.device)).float().cpu()


def _decode(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """As `vae.decode`, without its clamp, which has no gradient where it bites."""
    vae.clear_cache()
    z = vae.post_quant_conv(z)
    chunks = []
    for i in range(z.shape[2]):
        chunks.append(vae.decoder(z[:, :, i : i + 1], feat_cache=vae._feat_map, feat_idx=[0], first_chunk=i == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, 2), PATCH)


def _loss(
    vae: AutoencoderKLWan, video: torch.Tensor, stage: VaeStage, rng: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """L1 + MSE + L1 of the picture's gradients; the noise keeps neighbouring latents alike. And the MSE alone."""
    with torch.autocast(video.device.type, torch.bfloat16):
        z = vae.encode(video).latent_dist.mode()
        noisy = z + stage.noise * z.detach().float().std() * noise(rng, *z.shape).to(z.device)
        got = _decode(vae, noisy)
    got, z = got.float(), z.float()
    edges = sum(l1_loss(got.diff(dim=axis), video.diff(dim=axis)) for axis in (-1, -2))
    mse = mse_loss(got, video)
    return l1_loss(got, video) + stage.mse * mse + 0.5 * edges + 1e-5 * z.square().mean(), mse.item()


def _optimizer(vae: AutoencoderKLWan) -> Pair:
    """Muon for all kernels but those at the ends of the encoder and the decoder."""
    ends = ("conv_in", "conv_out", "quant_conv")
    kernels = {
        n: p for n, p in vae.named_parameters() if p.ndim >= 4 and p.shape[0] > 1 and not any(e in n for e in ends)
    }
    return Pair(list(kernels.values()), [p for n, p in vae.named_parameters() if n not in kernels])


def _crop(clip: np.ndarray, stage: VaeStage, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, HEIGHT - stage.height + 1), rng.integers(0, VIEW - stage.width + 1)
    return clip[:, top : top + stage.height, left : left + stage.width]
