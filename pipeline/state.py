"""All that later blocks of a generation depend on, as tensors and integers in a file, and back.

Keys, values and descriptors as they are between two blocks. With them a generation goes on at once; without, its
blocks are committed again, which leaves the same. The text is not among them: it follows from the prompt. A file is
in safetensors' format, and says digests of all that it holds, so that a damaged one is refused.
"""

import glob
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pipeline.bank.bank import Bank, TransferStats
from pipeline.kv_cache import KVCache
from pipeline.merged import MergedMemory, Tokens
from pipeline.retrieval import Retrieval
from pipeline.scenes import Scene
from utils.errors import UserError
from utils.files import atomic
from utils.streams import OnHost
from utils.tensors import digest

if TYPE_CHECKING:
    from pipeline.generation import Generation

STATE = ".state.safetensors"  # how the names of its files end
REMEDY = "delete it, and the blocks are committed again"
UNREADABLE = (OSError, SafetensorError, RuntimeError, KeyError, ValueError, TypeError)


@dataclass
class GenerationState:
    """What a generation holds.

    Attributes:
        tensors: on the CPU.
        values: plain data beside them.
    """

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]

    def keep(self, name: str, x: torch.Tensor | None) -> None:
        """Keep a copy; of None, that there is nothing."""
        if x is not None:
            self.tensors[name] = x.detach().to("cpu", copy=True).contiguous()

    def fill(self, name: str, x: torch.Tensor) -> None:
        """Write what was kept where it belongs.

        Raises:
            ValueError: it is of another shape or type.
        """
        kept = self.tensors[name]
        if kept.shape != x.shape or kept.dtype != x.dtype:
            raise ValueError(f"{name} is {list(kept.shape)} where this run has {list(x.shape)}")
        x.copy_(kept)

    def get(self, name: str, device: torch.device) -> torch.Tensor | None:
        kept = self.tensors.get(name)
        return None if kept is None else kept.to(device, copy=True)

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write a file, atomically.

        Args:
            about: of which generation this is, as plain data.
        """
        digests = {name: digest(x) for name, x in self.tensors.items()}
        content = json.dumps({"about": dict(about), "values": self.values, "digests": digests})
        metadata = {"state": content, "digest": _digest_of(content)}
        with atomic(path) as temporary:
            save_file(self.tensors, temporary, metadata)


def check_state(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of itself.

    Args:
        about: of which generation it must be, as far as is known.

    Raises:
        UserError: it is damaged, or of another generation.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if _digest_of(metadata["state"]) != metadata["digest"]:
            raise ValueError("its digest is another")
        content = json.loads(metadata["state"])
    except UNREADABLE as error:
        raise UserError(f"kept state {path} is damaged or none; {REMEDY}") from error
    for name, value in json.loads(json.dumps(dict(about))).items():
        there = content["about"].get(name)
        if there != value:
            raise UserError(
                f"kept state {path} is of another generation: its {name} is {there} where this has {value}; {REMEDY}"
            )
    return content


def read_state(path: Path, about: Mapping[str, Any]) -> GenerationState:
    """What `GenerationState.save` wrote; see `check_state`."""
    content = check_state(path, about)
    try:
        tensors = load_file(path)
        if {name: digest(x) for name, x in tensors.items()} != content["digests"]:
            raise ValueError("its digests are others")
    except UNREADABLE as error:
        raise UserError(f"kept state {path} is damaged; {REMEDY}") from error
    return GenerationState(tensors, content["values"])


def state_beside(path: str | Path) -> Path:
    """Where the state of a saved generation lies."""
    return Path(path).with_suffix(STATE)


def states_beside(video: Path) -> dict[int, Path]:
    """Latent frame -> what was kept of a finished video's generation before it, `NAME.FRAME.state.safetensors`."""
    found = {}
    for path in video.parent.glob(f"{glob.escape(video.stem)}.*{STATE}"):
        frame = path.name.removeprefix(f"{video.stem}.").removesuffix(STATE)
        if frame.isdecimal():
            found[int(frame)] = path
    return found


def take_state(generation: "Generation") -> GenerationState:
    """A copy of what a generation holds between two blocks.

    Raises:
        UserError: its parts keep none.
    """
    cache, index = generation.cache, generation.index
    if not isinstance(cache, KVCache) or not isinstance(index, Retrieval | None):
        raise UserError("the state of a generation that several processes share, or of a plain cache, is not kept")
    if generation.device.type == "cuda":
        torch.cuda.synchronize(generation.device)  # copies are on their way between host and device
    scene = {field.name: getattr(generation.scene, field.name) for field in fields(Scene)}
    state = GenerationState({}, {"start": generation.start, "scene": scene})
    state.keep("recent", generation.recent)
    _take_cache(state, cache)
    if cache.merged is not None:
        _take_merged(state, cache.merged)
    if cache.bank is not None:
        _take_bank(state, cache.bank)
    if index is not None:
        _take_index(state, index)
    state.values = json.loads(json.dumps(state.values))  # as the generation goes on, so do its lists
    return state


def put_state(generation: "Generation", state: GenerationState) -> None:
    """Make a generation that has no block yet one that holds what was taken of another.

    Raises:
        ValueError, KeyError, TypeError: it was of another method, size or type.
    """
    values, cache, index = state.values, generation.cache, generation.index
    _put_cache(state, cache)
    if cache.merged is not None:
        _put_merged(state, cache.merged, generation.device)
    if index is not None:
        _put_index(state, index, generation.device)
    if cache.bank is not None:
        _put_bank(state, cache.bank)
    scene = values["scene"]
    generation.scene = Scene(**scene | {"sink": None if scene["sink"] is None else tuple(scene["sink"])})
    generation.start = values["start"]
    generation.recent = state.get("recent", generation.device)
    generation.choose()


def _take_cache(state: GenerationState, cache: KVCache) -> None:
    for name in ("ring", "pinned", "encoded"):
        state.keep(name, getattr(cache, name))
    for slot, buffer in enumerate(cache.staged.buffers):
        state.keep(f"staged.{slot}", buffer)
    state.values["cache"] = {
        "end": cache.end,
        "pins": list(cache.pins.items()),
        "versions": list(cache.versions.items()),
        "staged": cache.staged.keys,
    }


def _put_cache(state: GenerationState, cache: KVCache) -> None:
    for name in ("ring", "pinned", "encoded"):
        state.fill(name, getattr(cache, name))
    for slot, buffer in enumerate(cache.staged.buffers):
        state.fill(f"staged.{slot}", buffer)
    values = state.values["cache"]
    cache.end = values["end"]
    cache.pins = dict(values["pins"])
    cache.versions = dict(values["versions"])
    for sample, keys in enumerate(values["staged"]):
        cache.staged.keys[sample] = [None if key is None else tuple(key) for key in keys]


def _take_merged(state: GenerationState, merged: MergedMemory) -> None:
    for layer, tokens in enumerate(merged.current):
        state.keep(f"queries.{layer}", merged.queries[layer])
        if tokens is not None:
            for field in fields(Tokens):
                state.keep(f"merged.{layer}.{field.name}", getattr(tokens, field.name))


def _put_merged(state: GenerationState, merged: MergedMemory, device: torch.device) -> None:
    for layer in range(len(merged.current)):
        merged.queries[layer] = state.get(f"queries.{layer}", device)
        if f"merged.{layer}.keys" in state.tensors:
            parts = {field.name: state.get(f"merged.{layer}.{field.name}", device) for field in fields(Tokens)}
            merged.current[layer] = Tokens(**parts)


def _take_bank(state: GenerationState, bank: Bank) -> None:
    order = []  # oldest use first
    for tier, slots in zip(reversed(bank.tiers), reversed(bank.slots), strict=True):
        for frame, slot in slots.items():
            order.append(frame)
            state.keep(f"bank.{frame}", tier.read(slot))
    state.values["bank"] = {"order": order, "frames": bank.frames, "seen": bank.seen}


def _put_bank(state: GenerationState, bank: Bank) -> None:
    values = state.values["bank"]
    for frame in values["order"]:
        bank.put_back(frame, state.tensors[f"bank.{frame}"])
    bank.frames, bank.seen = list(values["frames"]), values["seen"]
    bank.transfers = TransferStats()


def _take_index(state: GenerationState, index: Retrieval) -> None:
    state.keep("table", index.table)
    state.keep("index.recent", index.recent)
    nearest = [[frame, *known] for frame, known in index.most_similar_pair.nearest.items()]
    state.values["index"] = {
        "rows": list(index.rows.items()),
        "free": index.free,
        "last": index.last,
        "nearest": nearest,
    }


def _put_index(state: GenerationState, index: Retrieval, device: torch.device) -> None:
    values = state.values["index"]
    index.table, index.recent = state.get("table", device), state.get("index.recent", device)
    index.rows, index.free, index.last = dict(values["rows"]), list(values["free"]), values["last"]
    index.most_similar_pair.nearest = {frame: (value, other) for frame, value, other in values["nearest"]}
    if index.table is not None and device.type == "cuda":
        index.on_host = {frame: state.tensors["table"][row] for frame, row in index.rows.items()}
        index.similar = OnHost(torch.einsum("n b d, b d -> n b", index.table, index.table[index.rows[index.last]]))


def _digest_of(text: str) -> str:
    return digest(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
