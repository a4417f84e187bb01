"""The decoder of Wan's video autoencoder as a stream, with diffusers' weights, over several latent frames at once.

Channels come last: a convolution on a GPU wants them so, and a norm over them reads rows of memory. What it gives goes
to where the next convolution reads it, behind the frames that this one needs of the past. Tensors are [B, T, H, W, C].
"""

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    DupUp3D,
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    WanResidualUpBlock,
    WanRMS_norm,
    WanUpBlock,
)
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from wan.norms import add_into, is_fast, rms_norm_silu_into

BACK = 2  # input frames of the past that a convolution needs
NORM_EPS = 1e-24  # of the squared length; diffusers' least length is 1e-12


class Past:
    """What a stream's convolutions, in the order in which they come, need of its past.

    Attributes:
        frames: a convolution's last input frames [B, 2, H, W, C]; None where none came yet: they are zero.
        first: whether no latent frame has come yet.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.frames: list[torch.Tensor | None] = [None] * vae._cached_conv_counts["decoder"]
        self.first = True
        self.place = 0  # of the convolution that comes next

    def swap(self, room: torch.Tensor) -> None:
        """Put the past before the frames in `room` [B, 2 + T, H, W, C], and keep the last two for the next call."""
        before = self.frames[self.place]
        room[:, :BACK] = 0 if before is None else before
        self.frames[self.place] = room[:, -BACK:].clone()
        self.place += 1


def lay_out(vae: AutoencoderKLWan) -> None:
    """Bring the decoder's convolutions into the form in which their channels come last."""
    for module in vae.decoder.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def decode(vae: AutoencoderKLWan, z: torch.Tensor, past: Past) -> torch.Tensor:
    """A video's next latents [B, F, H, W, C], not normalised, to its next frames, before they are cut to -1 and 1.

    A video's first latent frame gives one frame, every other one four with Wan.
    """
    decoder = vae.decoder
    past.place = 0
    x = causal(decoder.conv_in, pointwise(vae.post_quant_conv, z), past)
    middle = decoder.mid_block
    x = residual(middle.resnets[0], x, past)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        x = residual(resnet, attended(attention, x), past)
    for block in decoder.up_blocks:
        x = up(block, x, past)
    x = causal(decoder.conv_out, x, past, decoder.norm_out)
    past.first = False
    return x


def up(block: WanUpBlock | WanResidualUpBlock, x: torch.Tensor, past: Past) -> torch.Tensor:
    before = x
    for resnet in block.resnets:
        x = residual(resnet, x, past)
    if isinstance(block, WanResidualUpBlock):
        if block.upsampler is not None:
            x = upsampled(block.upsampler, x, past)
            x += repeated(block.avg_shortcut, before, past.first)
    elif block.upsamplers is not None:
        x = upsampled(block.upsamplers[0], x, past)
    return x


def residual(block: WanResidualBlock, x: torch.Tensor, past: Past) -> torch.Tensor:
    is_apart = is_fast(x)  # on a GPU a convolution's bias takes a pass of its own, unless what comes next adds it
    first = block.conv1.bias if is_apart else None
    second = block.conv2.bias if is_apart else None
    y = causal(block.conv1, x, past, block.norm1, biased=not is_apart)
    y = causal(block.conv2, y, past, block.norm2, first, biased=not is_apart)
    if isinstance(block.conv_shortcut, nn.Conv3d):
        x = pointwise(block.conv_shortcut, x)
    return add_into(y, x, second)


def causal(
    conv: nn.Conv3d,
    x: torch.Tensor,
    past: Past,
    norm: WanRMS_norm | None = None,
    plus: torch.Tensor | None = None,
    biased: bool = True,
) -> torch.Tensor:
    """A convolution over the last two frames and x; where a norm is given, over SiLU of x, or x + plus, normed."""
    room = x.new_empty(len(x), BACK + x.shape[1], *x.shape[2:])
    if norm is None:
        room[:, BACK:] = x
    else:
        rms_norm_silu_into(room[:, BACK:], x, *weight_of(norm), plus)
    past.swap(room)
    y = convolved(conv, room.movedim(-1, 1), conv.bias if biased else None)
    return y.movedim(1, -1).contiguous()  # as it is, unless by another algorithm


def convolved(conv: nn.Conv3d, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A convolution over frames [B, C, T, H, W] that keeps their height and width, and loses `BACK` of their number."""
    _, rows, columns = conv.kernel_size
    padding = (0, rows // 2, columns // 2)
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # for small frames PyTorch would choose a convolution of its own that takes several times as long
        return torch.ops.aten.mkldnn_convolution(x, conv.weight, bias, padding, (1, 1, 1), (1, 1, 1), 1)
    return F.conv3d(x, conv.weight, bias, padding=padding)


def weight_of(norm: WanRMS_norm) -> tuple[torch.Tensor, float]:
    """What a root mean square norm over the last dimension takes: its weight [C] and eps."""
    weight = norm.gamma.flatten()
    return weight, NORM_EPS / len(weight)


def pointwise(conv: nn.Conv2d | nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """A convolution that sees one place alone."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def attended(block: WanAttentionBlock, x: torch.Tensor) -> torch.Tensor:
    """Each frame's places to one another, with one head."""
    weight, eps = weight_of(block.norm)
    qkv = pointwise(block.to_qkv, F.rms_norm(x, weight.shape, weight, eps)).flatten(2, 3)
    y = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
    return x + pointwise(block.proj, y).view(x.shape)


def upsampled(sampler: WanResample, x: torch.Tensor, past: Past) -> torch.Tensor:
    """Twice as high and wide; with `upsample3d` twice as many frames too, but for a video's first one."""
    if sampler.mode == "upsample3d":
        alone = int(past.first)
        parts = [x[:, :alone], x[:, alone:]]
        if parts[1].shape[1]:
            parts[1] = rearrange(causal(sampler.time_conv, parts[1], past), "b t h w (two c) -> b (t two) h w c", two=2)
        else:
            past.place += 1
        x = torch.cat(parts, dim=1)
    conv = sampler.resample[1]
    pictures = repeat(x, "b t h w c -> (b t) (h p) (w q) c", p=2, q=2).movedim(-1, 1)
    y = F.conv2d(pictures, conv.weight, conv.bias, padding=1).movedim(1, -1).contiguous()
    return y.unflatten(0, x.shape[:2])


def repeated(shortcut: DupUp3D, x: torch.Tensor, first: bool) -> torch.Tensor:
    """Channels of x laid out over more frames and places, as `upsampled` makes them."""
    x = x.repeat_interleave(shortcut.repeats, dim=-1)
    sizes = {"f": shortcut.factor_t, "p": shortcut.factor_s, "q": shortcut.factor_s}
    x = rearrange(x, "b t h w (c f p q) -> b (t f) (h p) (w q) c", **sizes)
    return x[:, shortcut.factor_t - 1 :] if first else x
