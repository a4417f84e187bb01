"""The Wan diffusion transformer, run causally: one forward denoises a block of latent frames in its context.

The model holds weights only. What a block attends to beside itself is the business of the
`Context` it is called with; names of modules are those of every published checkpoint.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from wan.attention import NATIVE, attend_here, attention, find_backend, seat
from wan.exchange import ALONE, Exchange
from wan.linear import FeedForward, Linear, is_plain, linear
from wan.norms import AddNorm, RMSNorm, gated, modulated
from wan.params import WanParams

# Per layer: k and v [B, tokens, heads, head_dim], and what is added to the logits [1, 1, 1, tokens], if anything is.
TextKV = Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]


class Attended(NamedTuple):
    """What one layer's self-attention works on: rotated queries and keys, and values, each [B, T, heads, head_dim].

    Blocks may be folded into the batch as long as reshaping restores the order of q. `bias`, where there is one, is
    added to the logits: [B, heads, T, S], or 1 in place of any of them.
    """

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None = None


class Context(Protocol):
    """Assembles what the self-attention of each layer sees."""

    def update(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
        """Take in a layer's unrotated q, k, v [B, T, heads, head_dim] of this forward; give what it attends to.

        Where processes share a video, the heads are this process's own.
        """


class CausalWanModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the flow of a block of latent frames; sizes as in `WanParams`."""

    _no_split_modules = ["Block"]  # noqa: RUF012 (diffusers' own convention)

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
        self.patch_embedding = PatchEmbedding(in_dim, dim, kernel_size=patch_size, stride=patch_size)
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

    @property
    def compute_dtype(self) -> torch.dtype:
        """What it computes in; ModelMixin's `dtype` looks through all parameters each time it is asked."""
        return self.patch_embedding.weight.dtype

    def fuse_projections(self) -> None:
        """Compute q, k and v of each self-attention in one product, and a GELU with its linear, where they are plain.

        The weights keep their names. What replaces a weight, as loading or adding a LoRA does, comes before.
        """
        for block in self.blocks:
            block.self_attn.fuse()
            block.ffn.fused = is_plain(block.ffn[0])

    def compile_blocks(self, **options: str | bool) -> None:
        """Compile the blocks: one graph serves all layers and all contexts, for each shape of x and of t.

        What hooks do before a block, such as bringing its weights, is no part of the graph.

        Args:
            options: of `torch.compile`, such as `backend`.
        """
        for block in self.blocks:
            block.forward = torch.compile(block.forward, dynamic=False, **options)

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
        bias = None
        is_native = self.blocks[0].cross_attn.backend is NATIVE  # others may take no bias
        if is_native and prompt_embeds.device.type == "cpu" and self.compute_dtype == torch.float32:
            prompt_embeds, bias = shortened(prompt_embeds)
        text = self.text_embedding(prompt_embeds.to(self.compute_dtype))  # [B, tokens, dim]
        return [(*block.cross_attn.project_text(text), bias) for block in self.blocks]

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
        frames, height, width = x.shape[1], x.shape[3], x.shape[4]
        _, ph, pw = self.config.patch_size
        x, e, e0 = self._embed(x, t)
        for layer in range(len(self.blocks)):
            x = self._run(layer, x, e0, text, context)
        x = self.exchange.join(self.head(x, e))
        return rearrange(
            x, "b (f h w) (p q c) -> b f c (h p) (w q)", f=frames, h=height // ph, w=width // pw, p=ph, q=pw
        )

    def leave(self, x: torch.Tensor, t: torch.Tensor, text: TextKV, context: Context) -> None:
        """Let the context take in these frames, as a forward does; their flow is not computed to the end.

        The last layer's own work serves the flow alone. Arguments as of `forward`.
        """
        x, _, e0 = self._embed(x, t)
        last = len(self.blocks) - 1
        for layer in range(last):
            x = self._run(layer, x, e0, text, context)
        block = self.blocks[last]
        with seat(partial(block.self_attn.leave, context, last)):
            block(x, e0, None)

    def _embed(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens [B, T, dim] of latents, and what the time makes of the head [B, F or 1, dim] and of the blocks."""
        assert t.shape[1] == 1 or self.exchange.count == 1, "a process's tokens are no whole frames"
        dtype = self.compute_dtype
        x = self.exchange.split(self.patch_embedding(x.to(dtype)))
        e = self.time_embedding(timestep_embedding(t, self.config.freq_dim).to(dtype))
        return x, e, rearrange(self.time_projection(e), "b f (six d) -> six b f 1 d", six=6)

    def _run(self, layer: int, x: torch.Tensor, e0: torch.Tensor, text: TextKV, context: Context) -> torch.Tensor:
        block = self.blocks[layer]
        with seat(partial(block.self_attn.attend, context, layer)):
            return block(x, e0, text[layer])


class PatchEmbedding(nn.Conv3d):
    """Latents [B, F, C, H, W] to tokens [B, T, dim]: patches do not overlap, so the convolution is one product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pf, ph, pw = self.kernel_size
        patches = rearrange(x, "b (f o) c (h p) (w q) -> b (f h w) (c o p q)", o=pf, p=ph, q=pw)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class Block(nn.Module):
    """Self-attention in context, cross-attention to the text, feed-forward; the first and last modulated by time."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.norm3 = AddNorm(dim, eps)
        self.cross_attn = CrossAttention(dim, num_heads, eps)
        self.norm2 = AddNorm(dim, eps, elementwise_affine=False)
        self.ffn = FeedForward(Linear(dim, ffn_dim), nn.GELU("tanh"), Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self, x: torch.Tensor, e0: torch.Tensor, text: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None
    ) -> torch.Tensor:
        # x [B, T, dim], e0 [6, B, F or 1, 1, dim]; without text it only offers q, k and v to the context
        shift1, scale1, gate1, shift2, scale2, gate2 = e0 + rearrange(self.modulation, "1 six d -> six 1 1 1 d")
        y = modulated(x, self.norm1.eps, shift1, scale1)
        if text is None:
            return attend_here(*self.self_attn.project(y))
        y = self.self_attn(y)
        x, y = self.norm3(x, y, gate1)
        x, y = self.norm2(x, self.cross_attn(y, *text), None, shift2, scale2)
        return gated(x, self.ffn(y), gate2)


class Attention(nn.Module):
    """Projections shared by self- and cross-attention; q and k are RMS-normed over all heads together."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = NATIVE
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.o = Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return rearrange(x, "b t (n d) -> b t n d", n=self.num_heads)


class SelfAttention(Attention):
    """Attention of a block's tokens to its context.

    Attributes:
        fused: weight and bias of q, k and v together, in the memory of their own; None: three products.
    """

    exchange = ALONE

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__(dim, num_heads, eps)
        self.fused: tuple[torch.Tensor, torch.Tensor] | None = None

    def fuse(self) -> None:
        """See `CausalWanModel.fuse_projections`."""
        parts = (self.q, self.k, self.v)
        for part in parts:
            if not is_plain(part):
                return
        weight = torch.cat([part.weight.data for part in parts])
        bias = torch.cat([part.bias.data for part in parts])
        for place, part in enumerate(parts):
            rows = slice(place * part.out_features, (place + 1) * part.out_features)
            part.weight.data = weight[rows]
            part.bias.data = bias[rows]
        self.fused = (weight, bias)

    def _apply(self, *arguments, **keywords) -> nn.Module:
        """Move or cast the weights, as `to` does; each then has memory of its own."""
        super()._apply(*arguments, **keywords)
        if self.fused is not None:
            self.fuse()
        return self

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of the tokens [B, T, dim], each [B, T, heads, head_dim]."""
        if self.fused is None:
            q, k, v = self.q(x), self.k(x), self.v(x)
        else:
            q, k, v = linear(x, *self.fused).chunk(3, dim=-1)
        return self.heads(self.norm_q(q)), self.heads(self.norm_k(k)), self.heads(v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(attend_here(*self.project(x)).flatten(2))

    def attend(self, context: Context, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of a layer's projections to its context, all [B, T, heads, head_dim]."""
        q, k, v = self.exchange.to_heads(q, k, v)  # all tokens of some heads, or all heads
        rotated_q, keys, values, bias = context.update(layer, q, k, v)
        attended = attention(rotated_q, keys, values, self.backend, bias).reshape(q.shape)
        return self.exchange.to_tokens(attended)

    def leave(self, context: Context, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Let the context take in a layer's projections, whose attention nobody asks for; an empty tensor like q."""
        context.update(layer, *self.exchange.to_heads(q, k, v))
        return torch.empty_like(q)


class CrossAttention(Attention):
    def project_text(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.heads(self.norm_k(self.k(text))), self.heads(self.v(text))

    def forward(
        self, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.o(attention(self.heads(self.norm_q(self.q(x))), k, v, self.backend, bias).flatten(2))


class Head(nn.Module):
    def __init__(self, dim: int, out_dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.head = nn.Linear(dim, out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        # x [B, T, dim], e [B, F or 1, dim]
        shift, scale = rearrange(e, "b f d -> 1 b f 1 d") + rearrange(self.modulation, "1 two d -> two 1 1 1 d")
        return self.head(modulated(x, self.norm.eps, shift, scale))


def shortened(prompt_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fewer of the zeros beyond the longest prompt, and the logit bias by which the last one counts for all the others.

    All zeros have one key and one value, so that what is attended is the same but for rounding. On a CPU, attention to
    hundreds of them is a good part of a block; the kernels of a GPU that are fastest take no bias.

    Args:
        prompt_embeds: [B, text_len, text_dim]

    Returns:
        [B, tokens, text_dim] with a multiple of 64 tokens, so that prompts have few shapes, and [1, 1, 1, tokens]; or
        what was given and None, where nothing can be left out.
    """
    length = prompt_embeds.shape[1]
    used = prompt_embeds.any(dim=2).any(dim=0).nonzero()
    longest = int(used[-1]) + 1 if len(used) else 0
    tokens = 64 * (longest // 64 + 1)
    if tokens >= length:
        return prompt_embeds, None
    bias = torch.zeros(1, 1, 1, tokens)
    bias[..., -1] = math.log(length - tokens + 1)
    return prompt_embeds[:, :tokens], bias


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    """[..., dim] sinusoids [cos | sin] of t * 10000^(-i / half), in float64."""
    half = dim // 2
    scale = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angles = t.double().unsqueeze(-1) * scale
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
