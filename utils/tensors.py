"""Weight files: read without running code, checked against what a model expects."""

import ctypes
import json
import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.complete import fault
from utils.errors import UserError
from utils.files import atomic, require_file

DOWNLOAD = "'bash download.sh' gets the published files; see README.md, 'Weights'"
INDEX = ".safetensors.index.json"
MADV_DONTNEED = 4  # Linux


def read_tensors(path: str | Path, what: str, remedy: str = DOWNLOAD) -> dict:
    """The content of a weight file, memory-mapped: names to tensors, or to groups of them.

    Args:
        path: `.safetensors`; an index `.safetensors.index.json` of several; a folder that holds either; or
            a `.pt`/`.pth` pickle, which may hold tensors only.
        what: the config key or role of the file, for messages.
        remedy: what to do when it is missing.

    Raises:
        UserError: the file is missing, truncated, foreign, or a pickle that would run code.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path, what, remedy)
    path = require_file(path, what, remedy)
    if wrong := fault(path):
        raise UserError(f"{what} {path} {wrong}; delete it and get it again")
    if path.name.endswith(INDEX):
        return _read_shards(path, what, remedy)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files in PyTorch's format of before 2020 cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        code = re.search(r"(?:GLOBAL|global:|class) ([\w.]+\.[\w.]+)", str(error))
        if code is None:
            raise UserError(f"{what} {path} is truncated or no weight file; delete it and get it again") from error
        raise UserError(
            f"{what} {path} is refused: it holds more than tensors, and unpickling it would call {code[1]}, which "
            "could be any code; get it from its publisher or convert it to .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(
            f"{what} {path} ({path.stat().st_size:,} bytes) is truncated or no weight file ({_first_line(error)}); "
            "delete it and get it again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{what} {path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def save_tensors(path: str | Path, content: Any) -> None:
    """`torch.save`, atomically; equal content gives equal bytes, whatever the file's name."""
    with atomic(path) as temporary, open(temporary, "wb") as file:  # a path would end up inside the archive
        torch.save(content, file)


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
        if tuple(tensors[key].shape) != shape:
            raise UserError(
                f"{source} does not fit: {key} is {list(tensors[key].shape)} where the model has {list(shape)}; "
                "it belongs to a model of another size"
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
    model.load_state_dict({key: copies[id(tensors[key])] for key in expected}, assign=True)
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
    names = json.loads(index.read_text()).get("weight_map")
    if not isinstance(names, dict):
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
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if start < end and any(low <= start and end <= high for low, high in mappings):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _some(keys: list[str], kind: str) -> str:
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return f"{', '.join(keys[:2])}{more} {'is' if len(keys) == 1 else 'are'} {kind}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
