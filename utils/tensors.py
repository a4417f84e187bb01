"""Weight files: read without running code, checked against what a model expects."""

import ctypes
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from utils.advice import advise, pages_within
from utils.complete import is_safetensors, problem
from utils.errors import DOWNLOAD, UserError, first_line
from utils.files import atomic, require_file

INDEX = ".safetensors.index.json"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>


def keep_freed_memory() -> None:
    """Let this process keep what tensors on the CPU give back, up to 512 MB, where the system's allocator can.

    Otherwise each tensor of some MB is new memory, which the system clears, page by page, as it is first written.
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(M_MMAP_THRESHOLD, 64 << 20)
        set_option(M_TRIM_THRESHOLD, 512 << 20)


def read_tensors(path: str | Path, what: str, remedy: str = DOWNLOAD) -> dict:
    """The content of a weight file, memory-mapped: names to tensors, or to groups of them.

    Args:
        path: `.safetensors`; an index `.safetensors.index.json` of several; a folder that holds either; or
            a `.pt`/`.pth` pickle, which may hold tensors only. Content decides which it is, not the name.
        what: the config key or role of the file, for messages.
        remedy: what to do when it is missing.

    Raises:
        UserError: the file is missing, truncated, foreign, or a pickle that would run code.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path, what, remedy)
    path = require_file(path, what, remedy)
    if wrong := problem(path):
        raise UserError(f"{what} {path} {wrong}; delete it and get it again")
    if path.name.endswith(INDEX):
        return _read_shards(path, what, remedy)
    try:
        if is_safetensors(path):
            return load_file(path)
        content = _read_pickle(path)
    except pickle.UnpicklingError as error:
        code = re.search(r"(?:GLOBAL|global:|class) ([\w.]+\.[\w.]+)", str(error))
        if code is None:
            raise UserError(f"{what} {path} is truncated or no weight file; delete it and get it again") from error
        raise UserError(
            f"{what} {path} is refused: it holds more than tensors, and unpickling it would call {code[1]}, which "
            "could be any code; get it from its publisher or convert it to .safetensors"
        ) from error
    except Exception as error:  # of many kinds: a damaged pickle names keys, types and places that are not there
        raise UserError(
            f"{what} {path} ({path.stat().st_size:,} bytes) is truncated or no weight file ({first_line(error)}); "
            "delete it and get it again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{what} {path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def _read_pickle(path: Path) -> Any:
    """The tensors of PyTorch's own format; nothing in the file is run."""
    if path.suffix == ".safetensors":  # PyTorch would go by the name; an open file has none, and cannot be mapped
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    # Files in PyTorch's format of before 2020 cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def save_tensors(path: str | Path, content: Any) -> None:
    """`torch.save`, atomically; equal content gives equal bytes, whatever the file's name."""
    with atomic(path) as temporary, open(temporary, "wb") as file:  # a path would end up inside the archive
        torch.save(content, file)


def digest(values: np.ndarray | torch.Tensor) -> str:
    """Hex digest of an array's type, shape and bytes; equal for a NumPy array and a tensor that are equal."""
    if isinstance(values, torch.Tensor):
        kind = str(values.dtype).removeprefix("torch.")
        shape = tuple(values.shape)
        flat = values.detach().cpu().contiguous().flatten()
        content = flat.view(torch.uint8).numpy()
    else:
        kind = str(values.dtype)
        shape = values.shape
        content = np.ascontiguousarray(values)
    hashed = blake2b(f"{kind} {list(shape)}".encode(), digest_size=16)
    hashed.update(content.data)
    return hashed.hexdigest()


def fingerprint(model: torch.nn.Module) -> str:
    """Tells the weights of one training or LoRA from those of others, by a few numbers of each; quick on a GPU, too."""
    some = []
    for weight in model.parameters():
        if type(weight) is torch.nn.Parameter:  # quantized ones are of types of their own
            some.append(weight.detach().flatten()[:64].float())
    return digest(torch.cat(some))


def check_fit(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, torch.Tensor],
    source: str,
    cause: str = "is it the right file for this model?",
) -> None:
    """Refuse weights whose names or shapes differ from the expected ones.

    Args:
        expected: name -> shape.
        source: the config key and file, for messages.
        cause: the likely reason for other names.

    Raises:
        UserError: names some of the missing or foreign tensors, or the first of another shape.
    """
    missing = [key for key in expected if key not in tensors]
    foreign = [key for key in tensors if key not in expected]
    if missing or foreign:
        faults = " and ".join(_some(keys, kind) for keys, kind in ((missing, "missing"), (foreign, "foreign")) if keys)
        raise UserError(f"{source} does not fit: {faults}; {cause}")
    for key, shape in expected.items():
        tensor = tensors[key]
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{source} does not fit: {key} is a {type(tensor).__name__} and no tensor; {cause}")
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{source} does not fit: {key} is {list(tensor.shape)} where the model has {list(shape)}; "
                "it belongs to a model of another size"
            )
        if not tensor.dtype.is_floating_point:
            raise UserError(
                f"{source} holds {key} as {str(tensor.dtype).removeprefix('torch.')}: it was made smaller by a "
                "method that is not read here; get the file in bfloat16, float16 or float32"
            )


def check_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights that are not numbers: with one of them every result is NaN.

    Raises:
        UserError: names the first tensor that holds NaN or infinity.
    """
    extremes = {}
    for key, tensor in tensors.items():
        if tensor.numel():
            numbers = tensor.float() if tensor.itemsize == 1 else tensor  # FP8 has no order of its own
            extremes[key] = torch.aminmax(numbers)  # NaN comes through; ten times quicker than to ask each number
    for key, (low, high) in extremes.items():  # now that a GPU has all of them to work on
        if not (low.isfinite() and high.isfinite()):
            raise UserError(
                f"{source} is refused: {key} holds NaN or infinity, with which every frame would be black; "
                "get it again, or take an earlier checkpoint of that training"
            )


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a model's weights."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def fill(
    model: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: str,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Give a model on the meta device its weights, each straight to its device and dtype; see `check_fit`.

    What is copied from a mapped file leaves this process's memory at once, so the peak is the model and
    one tensor more, not the model and the file.
    """
    expected = shapes_of(model)
    check_fit(expected, tensors, source)
    mappings = _mapped_files()
    # A copy even where nothing changes, so that no weight stays mapped to its file; tied weights stay tied.
    copies: dict[int, torch.Tensor] = {}
    for key in expected:
        if id(tensors[key]) not in copies:
            copies[id(tensors[key])] = tensors[key].to(device=device, dtype=dtype, copy=True)
            _let_go(tensors[key], mappings)
    weights = {key: copies[id(tensors[key])] for key in expected}
    check_finite(weights, source)
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)


def _in_folder(folder: Path, what: str, remedy: str) -> Path:
    """The index or the one file of weights in a folder."""
    found = sorted(folder.glob(f"*{INDEX}")) or sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{what} {folder} holds {', '.join(path.name for path in found)}; name one of them")
    raise UserError(f"{what} {folder} holds no .safetensors file; {remedy}")


def _read_shards(index: Path, what: str, remedy: str) -> dict[str, torch.Tensor]:
    tree = json.loads(index.read_bytes())
    names = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise UserError(f"{what} {index} has no weight_map; delete it and get it again")
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(names.values())):
        tensors |= read_tensors(index.parent / shard, f"{what}: a part of {index.name},", remedy)
    if names.keys() != tensors.keys():
        raise UserError(f"{what} {index} does not list what its parts hold; delete them and get them again")
    return tensors


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of this process that are private mappings of files; empty where the system does not tell."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    rows = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    spans = (row[0].split("-") for row in rows if len(row) == 6 and row[1][3] == "p" and row[4] != "0")
    return [(int(start, 16), int(end, 16)) for start, end in spans]


def _let_go(tensor: torch.Tensor, mappings: list[tuple[int, int]]) -> None:
    """Give back the whole pages of a mapped tensor; reading it again would read the file again."""
    start, end = pages_within(tensor)
    if any(low <= start and end <= high for low, high in mappings):
        advise((start, end), "MADV_DONTNEED")


def _some(keys: list[str], kind: str) -> str:
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return f"{', '.join(keys[:2])}{more} {'is' if len(keys) == 1 else 'are'} {kind}"
