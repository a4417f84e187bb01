"""The Wan video autoencoder (diffusers' AutoencoderKLWan): loading, and encoding and decoding as streams."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
from einops import rearrange

from utils.errors import DOWNLOAD, UserError, first_line
from utils.tensors import check_fit, fill, read_tensors, shapes_of
from wan.params import latent_format, read_config
from wan.vae_decoder import Past, decode, lay_out
from wan.vae_names import config_from_shapes, to_diffusers

ORIGINAL_FILES = ("Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors", "Wan2.2_VAE.pth", "Wan2.2_VAE.safetensors")
TOGETHER = 1 << 28  # bytes of the largest feature map of latent frames that are decoded at once


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
    vae = meta_vae(config, f"VAE {path}")
    fill(vae, tensors, f"VAE {path}", device, dtype)
    lay_out(vae)
    return vae


def read_vae(path: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """diffusers' configuration and the mapped tensors under its names, found to fit each other.

    Args:
        path: a diffusers folder, or one file of Wan2.1's or Wan2.2's VAE with Wan's or with diffusers' names.

    Raises:
        UserError: it is missing, unreadable or no such autoencoder.
    """
    path, source = Path(path), f"VAE {path}"
    tensors = to_diffusers(read_tensors(path, "VAE"))
    config = read_config(path) if path.is_dir() else config_from_shapes(tensors, source)
    check_fit(shapes_of(meta_vae(config, source)), tensors, source)
    return config, tensors


def meta_vae(config: Mapping, source: str) -> AutoencoderKLWan:
    """The autoencoder that a configuration describes, without memory for its weights."""
    try:
        with torch.device("meta"):
            vae = AutoencoderKLWan.from_config(dict(config))
        latent_format(vae.config)
        for name in ("latents_mean", "latents_std"):
            if len(vae.config[name]) != vae.config["z_dim"]:
                raise ValueError(f"{name} has {len(vae.config[name])} numbers")
    except Exception as error:  # whatever layers say to sizes that cannot be
        raise UserError(f"{source}: its config.json describes no VAE ({first_line(error)}); get it again") from error
    return vae


def normalisation(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-channel mean and std of the latents, each [C, 1, 1, 1] on the VAE's device."""
    mean = torch.tensor(vae.config.latents_mean, device=vae.device, dtype=torch.float32)
    std = torch.tensor(vae.config.latents_std, device=vae.device, dtype=torch.float32)
    return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)


def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """A whole video [B, T, 3, H, W] in [-1, 1] to normalised latents [B, F, C, h, w]; see `StreamingEncoder`."""
    return StreamingEncoder(vae)(video)


class StreamingEncoder:
    """Encodes one video's frames as they come; equal to encoding all at once, at constant memory.

    The first frame makes a latent frame alone, later ones make one together, four with Wan. Frames that
    do not fill a latent frame yet wait for the next call.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.format = latent_format(vae.config)
        self.past: list = [None] * vae._cached_conv_counts["encoder"]
        self.next_chunk = 1
        self.waiting: torch.Tensor | None = None  # [B, C, t, H, W], as the encoder takes them

    @torch.inference_mode()
    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """The next frames [B, T, 3, H, W] in [-1, 1] to the normalised latents [B, F, C, h, w] that they complete."""
        x = rearrange(frames.to(self.vae.device, self.vae.dtype), "b t c h w -> b c t h w")
        channels, height, width = self.format.shape(x.shape[3], x.shape[4])
        if self.vae.config.patch_size is not None:
            x = patchify(x, self.vae.config.patch_size)
        if self.waiting is not None:
            x = torch.cat([self.waiting, x], dim=2)
        latents = [torch.empty(len(x), channels, 0, height, width, device=x.device)]
        while x.shape[2] >= self.next_chunk:
            latents.append(self._encode(x[:, :, : self.next_chunk]))
            x = x[:, :, self.next_chunk :]
            self.next_chunk = self.format.temporal
        self.waiting = x.clone()  # not a view that would keep all frames
        return rearrange(torch.cat(latents, dim=2), "b c f h w -> b f c h w")

    def _encode(self, chunk: torch.Tensor) -> torch.Tensor:
        """One latent frame's frames [B, C, t, H, W] to [B, C, 1, h, w]."""
        moments = self.vae.quant_conv(self.vae.encoder(chunk, feat_cache=self.past, feat_idx=[0]))
        z, _ = moments.chunk(2, dim=1)  # the mean, and the logarithm of the variance
        mean, std = normalisation(self.vae)
        return (z.float() - mean) / std


class StreamingDecoder:
    """Decodes one video's latent frames as they come; equal to decoding all at once, at constant memory.

    The VAE's convolutions are causal in time: what they need of the past belongs to this stream.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae, self.past = vae, Past(vae)
        self.mean, self.std = normalisation(vae)
        self.format = latent_format(vae.config)

    @torch.inference_mode()
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """The next normalised latents [B, F, C, h, w] to frames [B, T, 3, H, W] in [-1, 1].

        With Wan T = 4 F; a video's first latent frame yields 1 frame instead of 4.
        """
        z = rearrange(latents.to(self.mean.device, torch.float32), "b f c h w -> b c f h w") * self.std + self.mean
        z = rearrange(z.to(self.vae.dtype), "b c f h w -> b f h w c")
        parts = [decode(self.vae, part, self.past) for part in z.split(self._together(z), dim=1)]
        frames = torch.cat(parts, dim=1).clamp_(-1, 1)
        patch = self.vae.config.patch_size or 1
        return rearrange(frames, "b t h w (c q p) -> b t c (h p) (w q)", p=patch, q=patch)

    @property
    def past_bytes(self) -> int:
        """What it keeps for the next latent frames."""
        return sum(frames.nbytes for frames in self.past.frames if frames is not None)

    def _together(self, z: torch.Tensor) -> int:
        """How many latent frames to decode at once: what they take while they are decoded grows with their number."""
        batch, _, height, width, _ = z.shape
        side = self.format.spatial // (self.vae.config.patch_size or 1)
        channels = self.vae.decoder.conv_out.in_channels
        places = self.format.temporal * height * side * width * side
        return max(1, TOGETHER // (batch * channels * places * z.element_size()))

    def state(self, sample: int) -> dict[str, torch.Tensor | bool]:
        """What one sample of the batch leaves for its next latent frames, on the CPU."""
        kept: dict[str, torch.Tensor | bool] = {"first": self.past.first}
        for place, frames in enumerate(self.past.frames):
            if frames is not None:
                kept[str(place)] = frames[sample : sample + 1].cpu().clone()
        return kept

    def restore(self, states: Sequence[Mapping[str, torch.Tensor | bool]]) -> None:
        """Go on where the samples of a batch were, each with a `state` of its own."""
        self.past.first = states[0]["first"]
        for place in range(len(self.past.frames)):
            if str(place) in states[0]:
                self.past.frames[place] = torch.cat([state[str(place)] for state in states]).to(self.vae.device)
