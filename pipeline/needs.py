"""What a run takes of the machine's memory, part by part, from what preflight read of its files."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.autoencoders import Read
from pipeline.bank.bank import Shares, share_out
from pipeline.bank.codec import build_codec
from pipeline.config import RunConfig
from pipeline.cuda_graph import can_capture
from pipeline.footprint import ALLOCATOR_GAPS, CUDA_BYTES, GB, Free, MemoryPlan, Part, Phase, placed, transformer_work
from pipeline.frames import FrameShape
from pipeline.kv_cache import KVCache, ring_frames
from pipeline.weight_stream import places_for
from utils.processes import leads, per_video
from wan.params import WanParams

LOWER_WINDOW = "lower model_kwargs.local_attn_size, batch_size, or height and width"
LOWER_PICTURE = "lower batch_size, or height and width"


@dataclass(frozen=True)
class Needs:
    """A run's settings, and the tensors of its weight files by name.

    Attributes:
        gpu, text_gpu: whether the models run on a GPU, and whether prompts are encoded on one.
        dtype: of the models.
    """

    config: RunConfig
    gpu: bool
    text_gpu: bool
    dtype: torch.dtype
    params: WanParams
    generator: Mapping[str, torch.Tensor]
    text: Mapping[str, torch.Tensor]
    vae: Read

    def plan(self, free: Free) -> tuple[MemoryPlan, int]:
        """The plan of memory, and the bank's budget on the device in bytes."""
        encoding = Phase("encoding the prompts", (self._text(),))
        parts = self._generating()
        budget = int(self.config.bank.device_gb * GB)
        if self.config.preset.bank_on_device and not budget:
            budget = MemoryPlan((encoding, Phase("generating", parts)), free).spare()
        if not self.gpu:
            budget = 0
        parts += (self._bank(budget),)
        return MemoryPlan((encoding, Phase("generating", parts)), free), budget

    def _text(self) -> Part:
        sizes = {}
        for key, tensor in distinct(self.text).items():
            sizes[key] = tensor.numel() * self.dtype.itemsize * leads()
        size, name = sum(sizes.values()), "text encoder's weights"
        if self.text_gpu and self.config.preset.offload:
            for table in ("shared.weight", "encoder.embed_tokens.weight"):
                sizes.pop(table, None)  # the embedding is read where it lies
            return Part(name, visiting(sizes, "encoder.block."), size, "use text_device: cpu")
        remedy = "use memory: low or text_device: cpu" if self.text_gpu else "use dtype: bfloat16"
        return placed(self.text_gpu, name, size, remedy)

    def _generating(self) -> tuple[Part, ...]:
        config, params, gpu = self.config, self.params, self.gpu
        item, shape = self.dtype.itemsize, self._frame_shape()
        picture = (config.batch_size, config.height, config.width)
        context = KVCache.nbytes_of(shape, config.policy(), self.dtype)
        context += 2 * params.num_layers * config.batch_size * params.text_len * params.dim * item  # the text's
        decoder = sum(tensor.numel() for tensor in distinct(self.vae.tensors).values()) * item * leads()
        past = self.vae.past_bytes(*picture, item) * leads()
        parts = (
            self._transformer(),
            placed(gpu, "context's keys and values", context, LOWER_WINDOW),
            placed(gpu, "VAE's weights", decoder, LOWER_PICTURE),
            placed(gpu, "VAE's past", past, f"use vae: tiny, or {LOWER_PICTURE}"),
            *self._working(shape, self.vae.working_bytes(*picture, item) * leads()),
        )
        gaps = 0 if config.preset.in_turn else sum(part.device for part in parts) * ALLOCATOR_GAPS // 100
        return (
            *parts,
            Part("gaps between tensors", gaps, estimated=True),
            Part("CUDA's context and workspaces", CUDA_BYTES if gpu else 0, estimated=True),
        )

    def _working(self, shape: FrameShape, decoding: int) -> tuple[Part, ...]:
        """What forwards and decoding hold for a moment."""
        config, params = self.config, self.params
        tokens = -(-config.num_frame_per_block * shape.tokens() * config.batch_size // per_video())
        forward = transformer_work(tokens, params.dim, params.ffn_dim, shape.nbytes(self.dtype), self.dtype.itemsize)
        if can_capture(config, self.gpu):
            forward *= 2  # one that is replayed keeps memory of its own
        if config.preset.in_turn:
            most = max(forward, decoding)
            name = "working memory of the transformer, then of the VAE"
            return (placed(self.gpu, name, most, LOWER_PICTURE, estimated=True),)
        return (
            placed(self.gpu, "transformer's working memory", forward, LOWER_PICTURE, estimated=True),
            placed(self.gpu, "VAE's working memory", decoding, LOWER_PICTURE, estimated=True),
        )

    def _transformer(self) -> Part:
        """Its weights; quantized, the blocks' linears keep one byte for each weight."""
        sizes = {}
        for key, tensor in distinct(self.generator).items():
            is_linear = key.startswith("blocks.") and tensor.dim() == 2
            is_short = is_linear and self.config.weights != "same"
            sizes[key] = tensor.numel() * (1 if is_short else self.dtype.itemsize)
        name, size = "transformer's weights", sum(sizes.values())
        if self.gpu and self.config.preset.offload:
            return Part(name, visiting(sizes, "blocks."), size, "use weights: int8")
        return placed(self.gpu, name, size, "use memory: low, or weights: int8")

    def _bank(self, budget: int) -> Part:
        """Keys and values of the frames that leave the window; the disk tier takes its share of the host's."""
        shares = self._shares(budget)
        name = f"keys and values of {shares.kept} frames outside the window ({shares.frame_bytes / 1e6:.1f} MB each)"
        remedy = (
            f"lower num_output_frames {self.config.num_output_frames}, set bank.storage: int8 or bank.capacity, "
            "or set bank.host_gb with bank.disk_gb"
        )
        return Part(name, shares.device * shares.frame_bytes, shares.host * shares.frame_bytes, remedy)

    def _shares(self, budget: int) -> Shares:
        config, policy, shape = self.config, self.config.policy(), self._frame_shape()
        leaving = max(config.num_output_frames - ring_frames(policy) - policy.pinned, 0) if policy.fetched else 0
        codec = build_codec(config.bank.storage, self.dtype)
        frame_bytes = config.batch_size * codec.record_bytes(shape.dims[1:])
        return share_out(policy.bank(config.bank), frame_bytes, leaving, budget)

    def _frame_shape(self) -> FrameShape:
        config = self.config
        _, height, width = self.vae.format.shape(config.height, config.width)
        return FrameShape.of(self.params, height, width, config.batch_size, per_video())


def distinct(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, those of several names once."""
    found = {}
    for key, tensor in tensors.items():
        found[id(tensor)] = (key, tensor)
    return dict(found.values())


def visiting(sizes: Mapping[str, int], prefix: str) -> int:
    """Bytes on the device where the numbered blocks under a prefix visit it in turn, and all else stays there."""
    blocks: dict[str, int] = defaultdict(int)
    rest = 0
    for key, size in sizes.items():
        if key.startswith(prefix):
            blocks[key.removeprefix(prefix).partition(".")[0]] += size
        else:
            rest += size
    return rest + places_for(len(blocks)) * max(blocks.values())
