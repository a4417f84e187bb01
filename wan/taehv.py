"""A tiny decoder for Wan's latents: TAEHV (`taew2_1` and `taew2_2` of github.com/madebyollin/taehv, MIT).

Its convolutions are over space only; each `MemBlock` also sees its own input one frame earlier, and
`TGrow` makes several frames of one. Names of modules are those of the published files.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from utils.errors import UserError
from utils.tensors import check_fit, fill, read_tensors, shapes_of
from wan.params import LatentFormat

REMEDY = "get taew2_1.pth (of Wan2.2-TI2V-5B: taew2_2.pth) from github.com/madebyollin/taehv, or set vae: full"
CONV_IN, CONV_OUT = 1, 22  # where in the decoder
STAGES = ((7, 8), (13, 14), (19, 20))  # TGrow and the convolution that end a stage
COLOURS = 3


class TAEHV(nn.Module):
    """Weights of the decoder.

    Args:
        latent_channels: of the latents.
        widths: feature maps of the three stages and of the last layers.
        growth: frames that each stage makes of one.
        patch_size: pixels along each side that the last convolution makes of one place.
    """

    def __init__(
        self,
        latent_channels: int = LatentFormat.channels,
        widths: tuple[int, int, int, int] = (256, 128, 64, 64),
        growth: tuple[int, int, int] = (1, 2, 2),
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.widths = widths
        self.growth = growth
        self.patch_size = patch_size
        layers: list[nn.Module] = [Clamp(), conv(latent_channels, widths[0]), nn.ReLU()]
        for (width, behind), frames in zip(pairwise(widths), growth, strict=True):
            layers += [MemBlock(width), MemBlock(width), MemBlock(width)]
            layers += [nn.Upsample(scale_factor=2), TGrow(width, frames), conv(width, behind, bias=False)]
        layers += [nn.ReLU(), conv(widths[-1], COLOURS * patch_size**2)]
        self.decoder = nn.Sequential(*layers)

    @property
    def format(self) -> LatentFormat:
        """The latents that it takes."""
        spatial = self.patch_size * 2 ** len(self.growth)
        return LatentFormat(self.latent_channels, spatial, math.prod(self.growth))


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
        self.frames = frames
        self.conv = nn.Conv2d(width, width * frames, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rearrange(self.conv(x), "n (t c) h w -> (n t) c h w", t=self.frames)


class Clamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


def conv(n_in: int, n_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias)


class StreamingTAEHV:
    """As `wan.vae.StreamingDecoder`: decodes one video's latent frames as they come, at constant memory."""

    def __init__(self, vae: TAEHV) -> None:
        self.vae = vae
        self.past: dict[int, torch.Tensor] = {}  # layer -> its last input [B, C, h, w]
        self.trim = vae.format.temporal - 1  # the video's first latent frame gives one frame

    @torch.inference_mode()
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """The next normalised latents [B, F, C, h, w] to frames [B, T, 3, H, W] in [-1, 1].

        With Wan T = 4 F; a video's first latent frame yields 1 frame instead of 4. Latent frames are decoded
        one by one, so the result does not depend on how many come at a time.
        """
        weight = self.vae.decoder[CONV_IN].weight
        frames = [self._decode(latent) for latent in latents.to(weight.device, weight.dtype).unbind(1)]
        video = torch.cat(frames, dim=1)[:, self.trim :]
        self.trim = 0
        return video.clamp(0, 1) * 2 - 1

    @property
    def past_bytes(self) -> int:
        """As `wan.vae.StreamingDecoder.past_bytes`."""
        return sum(past.nbytes for past in self.past.values())

    def state(self, sample: int) -> dict[str, torch.Tensor | int]:
        """As `wan.vae.StreamingDecoder.state`."""
        kept: dict[str, torch.Tensor | int] = {"trim": self.trim}
        for layer, past in self.past.items():
            kept[str(layer)] = past[sample : sample + 1].cpu().clone()
        return kept

    def restore(self, states: Sequence[Mapping[str, torch.Tensor | int]]) -> None:
        """As `wan.vae.StreamingDecoder.restore`."""
        self.trim = states[0]["trim"]
        device = self.vae.decoder[CONV_IN].weight.device
        for name in states[0].keys() - {"trim"}:
            self.past[int(name)] = torch.cat([state[name] for state in states]).to(device)

    def _decode(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] to [B, T, 3, H, W]; within, frames are folded into the batch."""
        batch = len(x)
        for index, layer in enumerate(self.vae.decoder):
            if isinstance(layer, MemBlock):
                now = x.unflatten(0, (batch, -1))  # [B, t, c, h, w]
                last = self.past[index] if index in self.past else torch.zeros_like(now[:, 0])
                self.past[index] = now[:, -1]
                x = layer(x, torch.cat([last.unsqueeze(1), now[:, :-1]], dim=1).flatten(0, 1))
            else:
                x = layer(x)
        x = F.pixel_shuffle(x, self.vae.patch_size)
        return x.unflatten(0, (batch, -1))


def load_taehv(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TAEHV:
    """A frozen tiny decoder; see `read_taehv`."""
    vae, tensors = read_taehv(path)
    fill(vae, tensors, f"tiny_vae_ckpt {path}", device, dtype)
    return vae


def read_taehv(path: str | Path) -> tuple[TAEHV, dict[str, torch.Tensor]]:
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
        vae = TAEHV(*_sizes(tensors, source))
    check_fit(shapes_of(vae), tensors, source, f"it is no tiny decoder for Wan; {REMEDY}")
    return vae, tensors


def _sizes(tensors: Mapping[str, torch.Tensor], source: str) -> tuple[int, tuple[int, ...], tuple[int, ...], int]:
    """`TAEHV`'s arguments, from the shapes of its convolutions."""
    width, channels, *_ = _shape(tensors, f"decoder.{CONV_IN}.weight", source)
    widths, growth = [width], []
    for grow, behind in STAGES:
        grown, width, *_ = _shape(tensors, f"decoder.{grow}.conv.weight", source)
        growth.append(grown // width)
        widths.append(_shape(tensors, f"decoder.{behind}.weight", source)[0])
    if math.prod(growth) != LatentFormat.temporal:
        raise UserError(
            f"{source} makes {math.prod(growth)} frames of a latent frame where Wan has {LatentFormat.temporal}; "
            f"{REMEDY}"
        )
    painted = _shape(tensors, f"decoder.{CONV_OUT}.weight", source)[0]
    patch_size = max(math.isqrt(painted // COLOURS), 1)
    return channels, tuple(widths), tuple(growth), patch_size


def _shape(tensors: Mapping[str, torch.Tensor], key: str, source: str) -> torch.Size:
    found = tensors.get(key)
    if not isinstance(found, torch.Tensor) or found.dim() != 4:
        raise UserError(f"{source} does not fit: {key} is missing; it is no tiny decoder for Wan; {REMEDY}")
    return found.shape
