"""What a run's files were made of: the record beside each video, and a corpus's manifest.

Both also tell whether files that are there belong to this run. Settings that say where or how fast do not
count; their definitions mark them. Weight files are compared by their content.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.context import LOCAL, SINK
from pipeline.generation import LatentBlock
from pipeline.prompts import Prompt
from pipeline.samples import Sample
from utils.cache import sha256_once
from utils.errors import UserError
from utils.files import write_json
from utils.provenance import flat, require_same
from utils.settings import places, to_dict

PACKAGES = ("torch", "diffusers", "transformers", "peft")
COMMITTED_BY = (  # settings that decide what a block with given latents leaves behind
    "model_name",
    "use_ema",
    "weights",
    "height",
    "width",
    "num_frame_per_block",
    "independent_first_frame",
    "context_noise",
    "model_kwargs",
    "bank",
)
Weights = dict[str, dict[str, str]]  # role -> file and its digest


def identity(config: RunConfig, samples: Sequence[Sample]) -> dict[str, Any]:
    """What decides the content of a run's files, for as long as it has its folder to itself."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.index, sample.number, sample.prompt, course(sample))).encode())
    return flat(content(config)) | {"weights": config.generator_ckpt, "prompts": digest.hexdigest()[:16]}


def record_block(block: LatentBlock, sample: int) -> dict:
    """What one sample's block attended to and retrieved, as plain data."""
    if block.record is not None:
        return dict(block.record)
    plan, selection, transfers = block.plan, block.selection, block.transfers
    return {
        "start": plan.start,
        "sink": list(plan.frames(SINK, sample)),
        "retrieved": list(selection.frames[sample]) if selection else [],
        "similarities": [round(s, 6) for s in selection.similarities[sample]] if selection else [],
        "local": list(plan.frames(LOCAL, sample)),
        "positions": list(plan.positions(sample)),
        "memory_bytes": block.memory_bytes,
        "tier_bytes": dict(block.tier_bytes),
        "copies": transfers.copies,
        "copied_bytes": transfers.bytes,
        "dropped": list(transfers.dropped),
    }


def record_run(
    config: RunConfig, sample: Sample, weights: Weights, seconds: Mapping[str, float], frames: int, blocks: list[dict]
) -> dict:
    """The JSON that is written beside a video.

    Args:
        seconds: by stage, of the sample's whole batch; decoding and writing run beside generation.
        frames: pixel frames of the video.
        blocks: from `record_block`.
    """
    return {
        "prompt": sample.prompt,
        "prompt_index": sample.index,
        "sample": sample.number,
        "seed": config.seed,
        "frames": frames,
        **course(sample),
        "config": to_dict(config),
        "weights": weights,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
        "blocks": blocks,
    }


def course(sample: Sample) -> dict[str, Any]:
    """What a sample's video follows beside its one prompt, as plain data; nothing where there is nothing more."""
    found: dict[str, Any] = {}
    if sample.scenes:
        found["scenes"] = [segment._asdict() for segment in sample.scenes]
    if sample.given:
        found["given"] = [given.describe() for given in sample.given]
    return found


def made_of(config: RunConfig, sample: Sample, weights: Weights) -> dict[str, Any]:
    """What decides the content of a sample's video."""
    own = {"prompt": sample.prompt, "prompt_index": sample.index, "sample": sample.number, "seed": config.seed}
    return own | course(sample) | {"config": content(config), "weights": _contents(weights)}


def check_records(finished: Mapping[Sample, Path], config: RunConfig, weights: Callable[[], Weights]) -> None:
    """Refuse videos that another run left where this one's belong, told by the JSON beside each.

    Args:
        finished: sample -> mp4 that is there.
        weights: asked last, and only if there are videos.

    Raises:
        UserError: names the file and the first thing that differs.
    """
    if not finished:
        return
    remedy = "name another output_folder=, overwrite with skip_existing=false, or delete it"
    records = {}
    for sample, path in finished.items():
        record = _read(path.with_suffix(".json"), f"whose video {path.name} is there; {remedy}")
        then = {"prompt": record.get("prompt"), "seed": record.get("seed"), "config": record["config"]}
        then |= {key: record[key] for key in ("scenes", "given") if key in record}
        now = {"prompt": sample.prompt, "seed": config.seed, "config": to_dict(config)} | course(sample)
        require_same(path, then, now, remedy, _defaults(config), _apart(config))
        records[path] = record
    now = {"weights": _contents(weights())}
    for path, record in records.items():
        require_same(path, {"weights": _contents(record["weights"])}, now, remedy)


def check_manifest(
    path: Path, config: RunConfig, prompts: Sequence[Prompt], samples: Sequence[Sample], weights: Weights, write: bool
) -> None:
    """Say in `path` what a corpus is made of, or refuse to add to one made of something else.

    Args:
        samples: one a prompt.
        write: whether this process writes the file.
    """
    files = []
    for prompt, sample in zip(prompts, samples, strict=True):
        name = f"latent_{sample.index:06d}.pt"
        files.append({"file": name, "prompt_index": prompt.index, "prompt": prompt.text} | course(sample))
    now = {"seed": config.seed, "config": content(config), "weights": _contents(weights), "files": files}
    remedy = "choose another output_folder, or delete this one"
    if path.exists():
        require_same(path, _read(path, remedy), now, remedy, _defaults(config), _apart(config))
    elif write:
        write_json(path, now)


class Digests:
    """Name and SHA-256 of the weight files, computed in a thread while the first video is generated.

    Args:
        files: role -> file or folder.
        cache: folder that remembers the digest of a file as long as it is unchanged; None remembers nothing.
    """

    def __init__(self, files: Mapping[str, Path], cache: str | None = None) -> None:
        folder = Path(cache).expanduser() / "digests" if cache else None
        pool = ThreadPoolExecutor(1)
        self.futures: dict[str, tuple[Path, Future]] = {}
        for role, path in files.items():
            if path.is_file():
                self.futures[role] = (path, pool.submit(sha256_once, path, folder))
                continue
            for part in sorted(path.iterdir()):
                if part.is_file():
                    self.futures[f"{role}/{part.name}"] = (part, pool.submit(sha256_once, part, folder))

    def __call__(self) -> Weights:
        """Role -> file and digest; waits for what is not computed yet."""
        return {name: {"file": str(part), "sha256": future.result()} for name, (part, future) in self.futures.items()}


def _contents(weights: Mapping[str, Any]) -> dict[str, str]:
    """Role -> digest alone; a manifest has kept just that."""
    return {role: entry["sha256"] if isinstance(entry, Mapping) else entry for role, entry in weights.items()}


def content(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what is made, as a tree."""
    apart = places(type(config))

    def without(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found = {}
        for key, value in tree.items():
            if f"{prefix}{key}" in apart:
                continue
            found[key] = without(value, f"{prefix}{key}.") if isinstance(value, dict) else value
        return found

    return without(to_dict(config))


def _apart(config: RunConfig) -> set[str]:
    return {f"config.{name}" for name in places(type(config))}


def _defaults(config: RunConfig) -> dict:
    return {"config": to_dict(type(config)(generator_ckpt="-"))}


def _read(path: Path, remedy: str) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist, {remedy}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read; {remedy}") from error
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in ("config", "weights")):
        raise UserError(f"{path} is no record of a run; {remedy}")
    return record
