"""Finished videos on disk: the mp4, its JSON record, and the plot of what was retrieved."""

import json
import platform
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from pipeline.config import RunConfig
from pipeline.decode import decode_stream, start_decoder, to_uint8
from pipeline.pipeline import Pipeline, Sample
from pipeline.prompts import Prompt
from pipeline.rollout import LatentBlock
from utils.background import Background
from utils.clock import Clock
from utils.errors import UserError
from utils.files import sha256_once, write_json
from utils.plot import plot_memory
from utils.settings import to_dict
from utils.streams import SideStream
from utils.video import VideoWriter
from wan.tiny_vae import TinyVAE

PACKAGES = ("torch", "diffusers", "transformers", "peft")
# Settings that say where and how much, not what: a corpus may be moved, extended in videos, or resumed elsewhere.
PLACES = (
    "output_folder",
    "data_path",
    "model_root",
    "generator_ckpt",
    "skip_existing",
    "max_video_saves",
    "device",
    "text_device",
    "text_cache",
    "memory",
    "vae",
    "tiny_vae_ckpt",
)
# The same for a video, nested ones too. Prompt and weight files are compared as themselves; the decoder counts here.
VIDEO_PLACES = (
    *(key for key in PLACES if key != "vae"),
    *("prompt", "inference_iter", "num_samples", "batch_size", "save_with_index"),
    *("lora_ckpt", "model_kwargs.ae_ckpt"),
    *("bank.device_gb", "bank.host_gb", "bank.disk_gb", "bank.disk_folder"),
)


def file_names(prompts: Sequence[Prompt], with_index: bool) -> dict[int, str]:
    """Prompt number -> file name without sample and suffix: the number, or the prompt's own text.

    Texts are cut to 100 characters; where that makes two prompts equal, their numbers are added.
    """
    if with_index:
        return {prompt.index: f"{prompt.index:05d}" for prompt in prompts}
    texts = {prompt.index: re.sub(r"[^\w ,.'-]", "_", prompt.text)[:100].strip(" .") for prompt in prompts}
    counts = list(texts.values())
    return {i: text if counts.count(text) == 1 else f"{text}-{i:05d}" for i, text in texts.items()}


def save_videos(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    paths: Sequence[Path],
    weights: Callable[[], dict],
    on_block: Callable[[int, Sequence[int], Sequence[int]], None],
) -> None:
    """Generate one batch of samples and write each one's mp4, JSON and, with retrieval, plot.

    A second thread decodes and writes a block's frames while the next one is generated. The mp4
    takes its name last: once it is there, all of it is.

    Args:
        weights: gives the names and digests of the weight files, once they are needed.
        on_block: called with bytes of memory, the first sample's retrieved frames and the frames that a bounded
            bank forgot, when a block is written.
    """
    config, clock = pipeline.config, Clock(pipeline.device)
    decoder = start_decoder(pipeline.vae)
    writers = [VideoWriter(path, (config.width, config.height), config.fps) for path in paths]
    records: list[list[dict]] = [[] for _ in samples]
    side = SideStream(pipeline.device, "decode")

    def decode(block: LatentBlock, ready: AbstractContextManager) -> None:
        with ready, clock("decode"):
            frames = to_uint8(decoder(block.latents))
        with clock("write"):
            for sample, writer in enumerate(writers):
                writer.write(frames[sample])
                records[sample].append(record_block(block, sample))
        on_block(block.memory_bytes, records[0][-1]["retrieved"], block.dropped)

    try:
        with clock("total"), Background(side.use_device) as background:
            for block in clock.each("generate", pipeline.blocks(samples)):
                background.do(decode, block, side.after_now())
        for sample, path, writer, blocks in zip(samples, paths, writers, records, strict=True):
            run = record_run(config, sample, weights(), clock.seconds, writer.frames, blocks)
            path.unlink(missing_ok=True)  # an older video never lies beside this one's record
            write_json(path.with_suffix(".json"), run)
            if pipeline.descriptor is not None:
                plot_memory(path.with_suffix(".memory.png"), blocks, config.num_output_frames, sample.prompt)
            writer.close()
    finally:
        for writer in writers:
            writer.discard()


def save_clip(vae: AutoencoderKLWan | TinyVAE, latents: torch.Tensor, path: Path, fps: int) -> None:
    """Decode one clip's latents [F, C, H, W] to an mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = None
    for frames in decode_stream(vae, latents.unsqueeze(0).split(1, dim=1)):
        writer = writer or VideoWriter(path, (frames.shape[3], frames.shape[2]), fps)
        writer.write(frames[0])
    writer.close()


def check_manifest(path: Path, config: RunConfig, prompts: Sequence[Prompt], weights: dict, write: bool) -> None:
    """Say in `path` what a corpus is made of, or refuse to add to one made of something else.

    Args:
        write: whether this process writes the file.
    """
    here = {
        "seed": config.seed,
        "config": {key: value for key, value in to_dict(config).items() if key not in PLACES},
        "weights": {role: entry["sha256"] for role, entry in weights.items()},
        "files": [
            {"file": f"latent_{position:06d}.pt", "prompt_index": prompt.index, "prompt": prompt.text}
            for position, prompt in enumerate(prompts)
        ],
    }
    if path.exists():
        require_same(path, here, _read_record(path), config, "choose another output_folder, or delete this one")
    elif write:
        write_json(path, here)


def check_records(
    finished: Mapping[Sample, Path], config: RunConfig, weights: Callable[[], dict[str, dict[str, str]]]
) -> None:
    """Refuse videos that another run left where this one's belong, told by the JSON beside each.

    Args:
        finished: sample -> mp4 that is there.
        weights: asked last, and only if there are videos.

    Raises:
        UserError: names the file and the first thing that differs.
    """
    remedy = "name another output_folder=, overwrite with skip_existing=false, or delete it"
    records = {}
    for sample, path in finished.items():
        try:
            records[path] = _read_record(path.with_suffix(".json"))
        except UserError as error:
            raise UserError(f"{path} may be another run's video: {error}; {remedy}") from error
        here = {"prompt": sample.prompt, "prompt_index": sample.index, "sample": sample.number}
        here |= {"config": _without(to_dict(config), VIDEO_PLACES)}
        there = {key: records[path].get(key) for key in here}
        there["config"] = _without(there["config"] or {}, VIDEO_PLACES)
        require_same(path, here, there, config, remedy)
    digests = {role: entry["sha256"] for role, entry in weights().items()} if records else {}
    for path, record in records.items():
        there = {role: entry["sha256"] for role, entry in record["weights"].items()}
        require_same(path, {"weights": digests}, {"weights": there}, config, remedy)


def require_same(path: Path, here: dict, there: dict, config: RunConfig, remedy: str) -> None:
    """Refuse what was made of something else than `here`; a setting that `there` does not know had its default.

    Raises:
        UserError: names `path`, the first key that differs, both values, and the remedy.
    """
    defaults = _flat({"config": to_dict(type(config)(generator_ckpt=""))})
    ours, theirs = _flat(here), _flat(there)
    for key in dict.fromkeys((*ours, *theirs)):
        mine, other = (tree.get(key, defaults.get(key, "nothing")) for tree in (ours, theirs))
        if mine != other:
            name = key.removeprefix("config.")
            raise UserError(f"{path} was made with {name} {_short(other)}, and this run has {_short(mine)}; {remedy}")


def _read_record(path: Path) -> dict:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} {'does not exist' if not path.exists() else 'cannot be read'}") from error
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in ("config", "weights")):
        raise UserError(f"{path} is no record of a run")
    return record


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted key -> value of a tree; lists of trees are counted from 0."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def _without(config: dict, keys: Collection[str]) -> dict:
    return {key: value for key, value in _flat(config).items() if key not in keys}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}..."


def record_block(block: LatentBlock, sample: int) -> dict:
    """What one sample's block attended to and retrieved, as plain data."""
    plan, selection = block.plan, block.selection
    return {
        "start": plan.own[0],
        "sink": list(plan.sink),
        "retrieved": list(selection.frames[sample]) if selection else [],
        "similarities": [round(s, 6) for s in selection.similarities[sample]] if selection else [],
        "local": list(plan.local),
        "positions": list(plan.positions),
        "memory_bytes": block.memory_bytes,
        "tier_bytes": dict(block.tier_bytes),
        "copies": block.copies,
        "copied_bytes": block.copied_bytes,
        "dropped": list(block.dropped),
    }


def record_run(
    config: RunConfig, sample: Sample, weights: dict, seconds: dict[str, float], frames: int, blocks: list[dict]
) -> dict:
    """The JSON that is written beside a video; `seconds` are those of its whole batch, where
    decoding and writing run beside generation."""
    return {
        "prompt": sample.prompt,
        "prompt_index": sample.index,
        "sample": sample.number,
        "seed": config.seed,
        "frames": frames,
        "config": to_dict(config),
        "weights": weights,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
        "blocks": blocks,
    }


class Digests:
    """Name and SHA-256 of the weight files, computed in a thread while the first video is generated.

    Args:
        files: role -> file or folder.
        cache: folder that remembers the digest of a file as long as it is unchanged; None remembers nothing.
    """

    def __init__(self, files: dict[str, Path], cache: str | None = None) -> None:
        folder = Path(cache).expanduser() / "digests" if cache else None
        pool = ThreadPoolExecutor(1)
        self.futures: dict[str, tuple[Path, Future]] = {}
        for role, path in files.items():
            parts = [path] if path.is_file() else sorted(part for part in path.iterdir() if part.is_file())
            for part in parts:
                name = role if path.is_file() else f"{role}/{part.name}"
                self.futures[name] = (part, pool.submit(sha256_once, part, folder))

    def __call__(self) -> dict[str, dict[str, str]]:
        """Role -> file and digest; waits for what is not computed yet."""
        return {name: {"file": str(part), "sha256": future.result()} for name, (part, future) in self.futures.items()}
