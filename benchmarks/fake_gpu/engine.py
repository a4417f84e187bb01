"""The real pipeline on a GPU that is not there, at any size: weights have shapes, and nothing else."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from random import Random

import torch
from diffusers import AutoencoderKLWan

from benchmarks.fake_gpu.gpu import FakeGPU
from benchmarks.fake_gpu.tally import Tally
from pipeline.build import assemble
from pipeline.config import load_config
from pipeline.decode import DecodeThread, start_decoder, to_uint8
from pipeline.generation import LatentBlock
from pipeline.noise import SeededNoise
from pipeline.offload import offload_transformer, quantize
from pipeline.pipeline import Pipeline
from pipeline.retrieval import Index, Selection
from wan.checkpoint import meta_model
from wan.params import LatentFormat, WanParams
from wan.taehv import TAEHV
from wan.vae_decoder import lay_out

LATENTMEM = {"use_latentmem": True, "compression_method": "avg_pool", "selection": "uniform"}


@dataclass(frozen=True)
class Case:
    """A generation to look at.

    Attributes:
        settings: of the run, `model_kwargs` and `bank` among them.
        layers: of the transformer; the other sizes are those of Wan2.1-T2V-1.3B at 480x832.
        blocks: generated; the last `counted` of them are counted.
        vae: decodes beside the generation, `full` or `tiny`; None: nothing is decoded.
        fork: after so many blocks a copy goes on in place of the generation, under other noise; None: it goes on.
        kept: before this block the state is taken, to be kept; None: never.
        switched: before this block the prompt changes and the window's frames are made again; None: never.
        told: what is retrieved is chosen elsewhere, see `Told`.
    """

    settings: Mapping
    layers: int = 1
    blocks: int = 12
    counted: int = 3
    vae: str | None = None
    fork: int | None = None
    kept: int | None = None
    switched: int | None = None
    told: bool = False


@dataclass(frozen=True)
class Seen:
    """What a generation did: a tally of the counted blocks, faults of all, and memory on the device in bytes."""

    tally: Tally
    blocks: int
    faults: list[str]
    peak: int


def watch(case: Case, gpu: FakeGPU | None = None) -> Seen:
    """Generate on a fake GPU."""
    gpu = gpu or FakeGPU()
    with gpu.installed():
        pipeline = make_pipeline(case, gpu)
        generation = start(pipeline, Told() if case.told else None)
        decoding = Decoding(case.vae, gpu, pipeline.config.preset.in_turn) if case.vae else None
        if case.kept is not None:
            generation.keep_at = frozenset({generation.policy.block * case.kept})
        gpu.memory.peak = gpu.memory.live
        for block in range(case.blocks):
            if block == case.blocks - case.counted:
                gpu.take()
            if block == case.fork:
                generation = generation.fork(noise_of(pipeline.config.batch_size, seed=1))
            if block == case.switched:
                generation.switch(empty_text(pipeline), "recache_sink")
            made = generation.step()
            assert (made.latents.device, made.latents.dtype) == (gpu.device, torch.float32)
            if decoding is not None:
                decoding.take(made)
        return Seen(gpu.take(), case.counted, gpu.faults, gpu.memory.peak)


def make_pipeline(case: Case, gpu: FakeGPU) -> Pipeline:
    given = {"generator_ckpt": "none", "num_output_frames": 3 * case.blocks}
    config = load_config(overrides={**case.settings, **given})
    offload = config.preset.offload
    model = make_model(case.layers, "cpu" if offload or config.weights != "same" else gpu.device)
    quantize(model, config.weights)
    if offload:
        offload_transformer(model, gpu.device)
    else:
        model.to(gpu.device)
        if config.weights == "same":
            model.fuse_projections()
    return assemble(config, model, LatentFormat(), gpu.device)


def make_model(layers: int, device: torch.device | str, dtype: torch.dtype = torch.bfloat16):
    """A transformer whose weights are empty tensors on `device`."""
    return _emptied(meta_model(WanParams(num_layers=layers)), device, dtype)


def _emptied(model: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> torch.nn.Module:
    weights = {}
    for name, weight in model.state_dict().items():
        weights[name] = torch.empty(weight.shape, dtype=dtype, device=device)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def start(pipeline: Pipeline, index: Index | None = None):
    """A generation of `batch_size` samples."""
    return pipeline.start_from(empty_text(pipeline), noise_of(pipeline.config.batch_size), index)


def empty_text(pipeline: Pipeline) -> torch.Tensor:
    """Embeddings of a batch's prompts."""
    params = pipeline.model.params
    return torch.empty(pipeline.config.batch_size, params.text_len, params.text_dim, dtype=torch.bfloat16)


def noise_of(batch: int, seed: int = 0) -> SeededNoise:
    return SeededNoise(seed, [(number, 0) for number in range(batch)])


class Told:
    """An index whose choices come from another process, so that no thread waits for this GPU to make them.

    By turns the oldest and the newest frames are chosen. See `pipeline.retrieval.Index`.
    """

    def __init__(self) -> None:
        self.start = self.choices = 0

    def add(self, latents: torch.Tensor) -> None:
        self.start += latents.shape[1]

    def drop(self, frame: int) -> None:
        """It keeps nothing of a frame."""

    def most_similar_pair(self, frames: Sequence[int]) -> tuple[int, int]:
        return frames[0], frames[1]

    def select(
        self, candidates: Sequence[int], k: int, rngs: Sequence[Random], draft: torch.Tensor | None = None
    ) -> Selection:
        self.choices += 1
        chosen = tuple(candidates[:k] if self.choices % 2 else candidates[-k:])
        return Selection(self.start, (chosen,) * len(rngs), ((0.0,) * len(chosen),) * len(rngs))


def make_vae(kind: str, gpu: FakeGPU):
    """A decoder of empty weights, `full` or `tiny`."""
    with torch.device("meta"):
        vae = TAEHV() if kind == "tiny" else AutoencoderKLWan()
    vae = _emptied(vae, gpu.device, torch.bfloat16)
    if kind == "full":
        lay_out(vae)
    return vae


class Decoding:
    """Decodes as a video's sink does, in turn or in a second thread on a stream of its own.

    The first thread waits for the second one, as FakeTensorMode is not made for two at a time.
    """

    def __init__(self, kind: str, gpu: FakeGPU, in_turn: bool) -> None:
        self.gpu, self.in_turn = gpu, in_turn
        self.thread = DecodeThread(gpu.device, in_turn)
        self.decoder = start_decoder(make_vae(kind, gpu))

    def take(self, block: LatentBlock) -> None:
        """Decode a block's latents to bytes in host memory."""
        host = dict(self.gpu.order.host())

        def work(block: LatentBlock, ready: AbstractContextManager) -> None:
            with nullcontext() if self.in_turn else self.gpu.in_thread(host), ready:
                to_uint8(self.decoder(block.latents))

        self.thread.take(work, block)
        for piece in self.thread.pending:
            piece.result()
