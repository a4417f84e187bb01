"""The Wan diffusion transformer, run causally: one forward denoises a block of latent frames in its context.

The model holds weights only. What a block attends to beside itself is the business of the
`Context` it is called with; names of modules are those of every published checkpoint.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import nn

from wan.attention import NATIVE, attention, find_backend
from wan.exchange import ALONE, Exchange
from wan.params import WanParams

TextKV = Sequence[tuple[torch.Tensor, torch.Tensor]]  # per layer: k and v, [B, text_len, heads, head_dim]


class Attended(NamedTuple):
    """What one layer's self-attention works on: rotated queries and keys, and values, each [B, T, heads, head_dim].

    Blocks may be folded into the batch as long as reshaping restores the order of q.
    """

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class Context(Protocol):
    """Assembles what the self-attention of each layer sees."""

    def update(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
        """Take in a layer's unrotated q, k, v [B, T, heads, head_dim] of this forward; give what it attends to.

        Where processes share a video, the heads are this process's own.
        """


class CausalWanModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the flow of a block of latent frames; sizes as in `WanParams`."""

    _no_split_modules = ["Block"]  # noqa: RUF012 (diffusers' own convention)
    _repeated_blocks = ["Block"]  # noqa: RUF012 (what `compile_repeated_blocks` compiles, once for all)

    @register_to_config
    def __init__(
        self,
        dim: int = WanParams.dim,
        ffn_dim: int = WanParams.ffn_dim,
        num_heads: int = WanParams.num_heads,
        num_layers: int = WanParams.num_layers,
        freq_dim: int = WanParams.freq_dim,
        text_dim: int = WanParams.text_dim,
        text_len: int = WanParams.text_len,
        in_dim: int = WanParams.in_dim,
        out_dim: int = WanParams.out_dim,
        patch_size: tuple[int, int, int] = WanParams.patch_size,
        eps: float = WanParams.eps,
    ) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=patch_size, stride=patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, ffn_dim, num_heads, eps) for _ in range(num_layers))
        self.head = Head(dim, out_dim * patch_size[0] * patch_size[1] * patch_size[2], eps)
        self.exchange = ALONE

    @property
    def params(self) -> WanParams:
        return WanParams(**{name: self.config[name] for name in WanParams().to_dict()})

    def set_attention_backend(self, backend: str) -> None:
        """Use one of diffusers' attention kernels; overrides ModelMixin's, which looks for its own classes."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = find_backend(backend)

    def share(self, exchange: Exchange) -> None:
        """Compute every forward together with other processes, which are given the same x, t and text."""
        self.exchange = exchange
        for block in self.blocks:
            block.self_attn.exchange = exchange

    def encode_text(self, prompt_embeds: torch.Tensor) -> TextKV:
        """Cross-attention keys and values of all layers; they serve every forward of a prompt.

        Args:
            prompt_embeds: [B, text_len, text_dim], zero beyond the prompt's length (attended all the same).
        """
        text = self.text_embedding(prompt_embeds.to(self.dtype))  # [B, text_len, dim]
        return [block.cross_attn.project_text(text) for block in self.blocks]

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: TextKV, context: Context) -> torch.Tensor:
        """Predict the flow v of noisy latents (x0 = x - sigma * v).

        Args:
            x: [B, F, C, H, W] latents.
            t: [B, F] timesteps (0..1000) of the frames, or [B, 1] where they share one.
            text: from `encode_text`.
            context: what self-attention sees beside these frames.

        Returns:
            [B, F, C, H, W]
        """
        assert t.shape[1] == 1 or self.exchange.count == 1, "a process's tokens are no whole frames"
        frames, height, width = x.shape[1], x.shape[3], x.shape[4]
        _, ph, pw = self.config.patch_size
        x = self.patch_embedding(rearrange(x.to(self.dtype), "b f c h w -> b c f h w"))
        x = self.exchange.split(rearrange(x, "b d f h w -> b (f h w) d"))
        e = self.time_embedding(timestep_embedding(t, self.config.freq_dim).to(self.dtype))  # [B, F or 1, dim]
        e0 = rearrange(self.time_projection(e), "b f (six d) -> six b f 1 d", six=6)
        for layer, block in enumerate(self.blocks):
            x = block(x, e0, text[layer], context, layer)
        x = self.exchange.join(self.head(x, e))
        return rearrange(
            x, "b (f h w) (p q c) -> b f c (h p) (w q)", f=frames, h=height // ph, w=width // pw, p=ph, q=pw
        )


class Block(nn.Module):
    """Self-attention in context, cross-attention to the text, feed-forward; the first and last modulated by time."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = CrossAttention(dim, num_heads, eps)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU("tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self, x: torch.Tensor, e0: torch.Tensor, text: tuple[torch.Tensor, torch.Tensor], context: Context, layer: int
    ) -> torch.Tensor:
        # x [B, T, dim], e0 [6, B, F or 1, 1, dim]
        shift1, scale1, gate1, shift2, scale2, gate2 = e0 + rearrange(self.modulation, "1 six d -> six 1 1 1 d")
        x = gated(x, self.self_attn(modulated(self.norm1(x), shift1, scale1), context, layer), gate1)
        x = x + self.cross_attn(self.norm3(x), *text)
        return gated(x, self.ffn(modulated(self.norm2(x), shift2, scale2)), gate2)


class Attention(nn.Module):
    """Projections shared by self- and cross-attention; q and k are RMS-normed over all heads together."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = NATIVE
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps)
        self.norm_k = nn.RMSNorm(dim, eps)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return rearrange(x, "b t (n d) -> b t n d", n=self.num_heads)


class SelfAttention(Attention):
    exchange = ALONE

    def forward(self, x: torch.Tensor, context: Context, layer: int) -> torch.Tensor:
        q = self.heads(self.norm_q(self.q(x)))
        k = self.heads(self.norm_k(self.k(x)))
        v = self.heads(self.v(x))
        q, k, v = self.exchange.to_heads(q, k, v)  # all tokens of some heads, or all heads
        attended = attention(*context.update(layer, q, k, v), self.backend).reshape(q.shape)
        return self.o(self.exchange.to_tokens(attended).flatten(2))


class CrossAttention(Attention):
    def project_text(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.heads(self.norm_k(self.k(text))), self.heads(self.v(text))

    def forward(self, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.o(attention(self.heads(self.norm_q(self.q(x))), k, v, self.backend).flatten(2))


class Head(nn.Module):
    def __init__(self, dim: int, out_dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.head = nn.Linear(dim, out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        # x [B, T, dim], e [B, F or 1, dim]
        shift, scale = rearrange(e, "b f d -> 1 b f 1 d") + rearrange(self.modulation, "1 two d -> two 1 1 1 d")
        return self.head(modulated(self.norm(x), shift, scale))


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [B, T, dim] * (1 + scale) + shift, both [B, F, 1, dim] over the tokens of their frame."""
    return (x.unflatten(1, (shift.shape[1], -1)) * (1 + scale) + shift).flatten(1, 2)


def gated(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x + gate * y with gate [B, F, 1, dim] over the tokens of their frame."""
    return x + (y.unflatten(1, (gate.shape[1], -1)) * gate).flatten(1, 2)


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    """[..., dim] sinusoids [cos | sin] of t * 10000^(-i / half), in float64."""
    half = dim // 2
    scale = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angles = t.double().unsqueeze(-1) * scale
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
