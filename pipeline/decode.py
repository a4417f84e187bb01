"""Turns latent blocks into pictures, as a stream: memory does not grow with the video's length."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange

from pipeline.generation import LatentBlock
from utils.background import Background
from utils.errors import UserError
from utils.streams import OnHost, SideStream
from wan.taehv import TAEHV, StreamingTAEHV
from wan.vae import StreamingDecoder


def require_finite(block: LatentBlock) -> None:
    """Refuse a block with NaN or infinity among its latents.

    It waits for the block to be finished: call it where its frames are waited for, too.

    Raises:
        UserError: names the block.
    """
    if not torch.isfinite(block.latents).all():
        raise UserError(
            f"the block at latent frame {block.plan.start} has numbers that are not finite, of which no video comes; "
            "check the weights and the LoRA, or use dtype: float32"
        )


def to_uint8(frames: torch.Tensor) -> np.ndarray:
    """Frames [B, T, 3, H, W] in [-1, 1] to [B, T, H, W, 3] bytes."""
    pixels = frames.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return OnHost(rearrange(pixels, "b t c h w -> b t h w c").contiguous()).get().numpy()


State = Mapping[str, Any]  # what a decoder keeps of one sample's past: tensors on the CPU and plain values


class Decoder(Protocol):
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """A video's next normalised latents [B, F, C, H, W] to frames [B, T, 3, height, width] in [-1, 1]."""

    @property
    def past_bytes(self) -> int:
        """What it keeps for the next latents."""

    def state(self, sample: int) -> State:
        """What the next latents of one sample of the batch need of those before."""

    def restore(self, states: Sequence[State]) -> None:
        """Go on from the states of a batch's samples, as if all that was before had been decoded."""


class DecodeThread(Background):
    """Takes finished blocks beside the generation of the next ones, on a GPU on a stream of its own.

    Args:
        in_turn: no thread and no stream, a block is taken before the next one is begun.
    """

    def __init__(self, device: torch.device, in_turn: bool) -> None:
        self.device, self.side, self.in_turn = device, SideStream(device, "decode"), in_turn
        super().__init__(self.side.use_device, depth=0 if in_turn else 2)

    def take(self, work: Callable[[LatentBlock, AbstractContextManager], None], block: LatentBlock) -> None:
        """Call `work` with a block, and with a context within which the block is finished on the device."""
        if not self.in_turn:
            self.do(work, block, self.side.after_now())
            return
        self._hand_over()
        self.do(work, block, nullcontext())
        self._hand_over()

    def _hand_over(self) -> None:
        """Give back what the allocator keeps: forwards and decoding take pieces of other sizes."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


DECODERS = {AutoencoderKLWan: StreamingDecoder, TAEHV: StreamingTAEHV}


def start_decoder(vae: AutoencoderKLWan | TAEHV) -> Decoder:
    """A decoder for one video."""
    return DECODERS[type(vae)](vae)


def decode_stream(vae: AutoencoderKLWan | TAEHV, blocks: Iterable[torch.Tensor]) -> Iterator[np.ndarray]:
    """Decode latent blocks [B, F, C, H, W] as they come, each to [B, T, height, width, 3] bytes."""
    decoder = start_decoder(vae)
    for latents in blocks:
        yield to_uint8(decoder(latents))
