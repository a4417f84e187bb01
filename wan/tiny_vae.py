"""A tiny decoder for Wan's latents, of the TAEHV family (`taew2_1` of github.com/madebyollin/taehv, MIT).

Its convolutions are over space only; each `MemBlock` also sees its own input one frame earlier, and
`TGrow` makes several frames of one. Names of modules are those of the published files.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from utils.errors import UserError
from utils.tensors import check_fit, fill, read_tensors, shapes_of

REMEDY = "get taew2_1.pth from github.com/madebyollin/taehv, or set vae: full"
CONV_IN, STAGES = 1, ((7, 8), (13, 14), (19, 20))  # where in the decoder: TGrow and the convolution that end a stage


class TinyVAE(nn.Module):
    """Weights of the decoder.

    Args:
        latent_channels: of the latents.
        widths: feature maps of the three stages and of the last layers.
        growth: frames that each stage makes of one.
    """

    def __init__(
        self,
        latent_channels: int = 16,
        widths: tuple[int, int, int, int] = (256, 128, 64, 64),
        growth: tuple[int, int, int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        self.latent_channels, self.widths, self.growth = latent_channels, widths, growth
        layers: list[nn.Module] = [Clamp(), conv(latent_channels, widths[0]), nn.ReLU()]
        for (width, behind), frames in zip(pairwise(widths), growth, strict=True):
            layers += [MemBlock(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), TGrow(width, frames), conv(width, behind, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), conv(widths[-1], 3))


class MemBlock(nn.Module):
    """A residual block over a frame and the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = conv(2 * width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(torch.cat([x, past], dim=1)) + x)


class TGrow(nn.Module):
    """Several frames of each."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.frames, self.conv = frames, nn.Conv2d(width, width * frames, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rearrange(self.conv(x), "n (t c) h w -> (n t) c h w", t=self.frames)


class Clamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


def conv(n_in: int, n_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias)


class TinyStreamingDecoder:
    """As `wan.vae.StreamingDecoder`: decodes one video's latent frames as they come, at constant memory."""

    def __init__(self, vae: TinyVAE) -> None:
        self.vae = vae
        self.past: dict[int, torch.Tensor] = {}  # layer -> its last input [B, C, h, w]
        self.trim = math.prod(vae.growth) - 1  # the video's first latent frame gives one frame

    @torch.inference_mode()
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """The next normalised latents [B, F, C, H, W] to frames [B, T, 3, 8 H, 8 W] in [-1, 1].

        T is 4 F, but for the video's first latent frame, which gives one frame. Latent frames are decoded
        one by one, so the result does not depend on how many come at a time.
        """
        weight = self.vae.decoder[CONV_IN].weight
        frames = [self._decode(latent) for latent in latents.to(weight.device, weight.dtype).unbind(1)]
        video = torch.cat(frames, dim=1)[:, self.trim :]
        self.trim = 0
        return video.clamp(0, 1) * 2 - 1

    def _decode(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, T, 3, 8 H, 8 W]; within, frames are folded into the batch."""
        batch = len(x)
        for index, layer in enumerate(self.vae.decoder):
            if isinstance(layer, MemBlock):
                now = x.unflatten(0, (batch, -1))  # [B, t, c, h, w]
                last = self.past[index] if index in self.past else torch.zeros_like(now[:, 0])
                self.past[index] = now[:, -1]
                x = layer(x, torch.cat([last.unsqueeze(1), now[:, :-1]], dim=1).flatten(0, 1))
            else:
                x = layer(x)
        return x.unflatten(0, (batch, -1))


def load_tiny_vae(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TinyVAE:
    """A frozen tiny decoder; see `read_tiny_vae`."""
    vae, tensors = read_tiny_vae(path)
    fill(vae, tensors, f"tiny_vae_ckpt {path}", device, dtype)
    return vae


def read_tiny_vae(path: str | Path) -> tuple[TinyVAE, dict[str, torch.Tensor]]:
    """The decoder on the meta device, sized as a file says, and the file's mapped tensors, found to fit it.

    Args:
        path: `.pth` or `.safetensors` with names such as `decoder.1.weight`; an encoder in it is left out.

    Raises:
        UserError: the file is missing, unreadable or no such decoder.
    """
    source = f"tiny_vae_ckpt {path}"
    tensors = read_tensors(path, "tiny_vae_ckpt", REMEDY)
    tensors = {key: value for key, value in tensors.items() if not key.startswith("encoder.")}
    with torch.device("meta"):
        vae = TinyVAE(*_sizes(tensors, source))
    check_fit(shapes_of(vae), tensors, source, f"it is no tiny decoder for Wan 2.1; {REMEDY}")
    return vae, tensors


def _sizes(tensors: Mapping[str, torch.Tensor], source: str) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """`TinyVAE`'s arguments, from the shapes of its convolutions."""

    def shape(layer: int, name: str = "weight") -> torch.Size:
        key = f"decoder.{layer}.{name}"
        found = tensors.get(key)
        if not isinstance(found, torch.Tensor) or found.dim() != 4:
            raise UserError(f"{source} does not fit: {key} is missing; it is no tiny decoder for Wan 2.1; {REMEDY}")
        return found.shape

    grown = [shape(grow, "conv.weight") for grow, _ in STAGES]
    growth = tuple(frames // width for frames, width, *_ in grown)
    if math.prod(growth) != 4:
        raise UserError(f"{source} makes {math.prod(growth)} frames of a latent frame where Wan 2.1 has 4; {REMEDY}")
    return shape(CONV_IN)[1], (shape(CONV_IN)[0], *(shape(behind)[0] for _, behind in STAGES)), growth
