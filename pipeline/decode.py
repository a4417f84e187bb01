"""Latent blocks to pictures, as a stream: memory does not grow with the video's length."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange

from wan.vae import StreamingDecoder


def to_uint8(frames: torch.Tensor) -> np.ndarray:
    """Frames [B, T, 3, H, W] in [-1, 1] to [B, T, H, W, 3] bytes."""
    pixels = ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "b t c h w -> b t h w c").cpu().numpy()


def decode_stream(vae: AutoencoderKLWan, blocks: Iterable[torch.Tensor]) -> Iterator[np.ndarray]:
    """Decode latent blocks [B, F, C, H, W] as they come, each to [B, T, 8 H, 8 W, 3] bytes."""
    decoder = StreamingDecoder(vae)
    for latents in blocks:
        yield to_uint8(decoder(latents))
