"""The Wan video autoencoder (diffusers' AutoencoderKLWan): loading, encoding, and decoding as a stream."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from einops import rearrange

from utils.errors import UserError
from utils.tensors import DOWNLOAD, check_fit, fill, read_tensors, shapes_of

ORIGINAL_FILES = ("Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors")


def find_vae(folder: Path) -> Path:
    """The VAE inside a model folder: `vae/` in diffusers' form, else Wan's original file."""
    if (folder / "vae" / "config.json").is_file():
        return folder / "vae"
    for name in ORIGINAL_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"no VAE in {folder}: neither vae/config.json nor {' nor '.join(ORIGINAL_FILES)} is there; {DOWNLOAD}"
    )


def load_vae(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> AutoencoderKLWan:
    """A frozen AutoencoderKLWan; see `read_vae`."""
    config, tensors = read_vae(path)
    vae = _meta_vae(config)
    fill(vae, tensors, f"VAE {path}", device, dtype)
    return vae


def read_vae(path: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """diffusers' configuration and the mapped tensors under its names, found to fit each other.

    Args:
        path: a diffusers folder, or one file with Wan's or with diffusers' names.
    """
    path = Path(path)
    tensors = dict(read_tensors(path, "VAE"))
    if path.is_dir():
        config = dict(AutoencoderKLWan.load_config(path))
    else:
        if "encoder.conv1.weight" in tensors:
            tensors = convert_wan_vae_to_diffusers(tensors)
        if "encoder.conv_in.weight" not in tensors:
            raise UserError(f"VAE {path} holds no Wan VAE; delete it and get it again")
        config = {"base_dim": tensors["encoder.conv_in.weight"].shape[0]}
    check_fit(shapes_of(_meta_vae(config)), tensors, f"VAE {path}")
    return config, tensors


def _meta_vae(config: dict) -> AutoencoderKLWan:
    with torch.device("meta"):
        return AutoencoderKLWan.from_config(config)


def normalisation(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-channel mean and std of the latents, each [C, 1, 1, 1] on the VAE's device."""
    make = lambda values: torch.tensor(values, device=vae.device, dtype=torch.float32).view(-1, 1, 1, 1)  # noqa: E731
    return make(vae.config.latents_mean), make(vae.config.latents_std)


@torch.inference_mode()
def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Video [B, T, 3, H, W] in [-1, 1] with T = 1 + 4 * (F - 1) to normalised latents [B, F, C, H / 8, W / 8]."""
    mean, std = normalisation(vae)
    x = rearrange(video.to(vae.device, vae.dtype), "b t c h w -> b c t h w")
    z = (vae.encode(x).latent_dist.mode().float() - mean) / std
    return rearrange(z, "b c f h w -> b f c h w")


class StreamingDecoder:
    """Decodes one video's latent frames as they come; equal to decoding all at once, at constant memory.

    The VAE's convolutions are causal in time: what they need of the past is `past`, their last
    inputs, which belong to this stream.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.past: list = [None] * vae._cached_conv_counts["decoder"]
        self.first = True

    @torch.inference_mode()
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """The next normalised latents [B, F, C, H, W] to frames [B, T, 3, 8 H, 8 W] in [-1, 1].

        T is 4 F, but for the video's first latent frame, which gives one frame.
        """
        mean, std = normalisation(self.vae)
        z = rearrange(latents.to(mean.device, torch.float32), "b f c h w -> b c f h w") * std + mean
        x = self.vae.post_quant_conv(z.to(self.vae.dtype))
        frames = []
        for latent in x.split(1, dim=2):
            frames.append(self.vae.decoder(latent, feat_cache=self.past, feat_idx=[0], first_chunk=self.first))
            self.first = False
        video = torch.cat(frames, dim=2)
        if self.vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=self.vae.config.patch_size)
        return rearrange(video.clamp(-1, 1), "b c t h w -> b t c h w")
