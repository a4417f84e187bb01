"""Weight files: read without running code, checked against what a model expects."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.errors import UserError
from utils.files import atomic, require_file

DOWNLOAD = "README.md, 'Weights', has the command that downloads it"


def read_tensors(path: str | Path, what: str, remedy: str = DOWNLOAD) -> dict:
    """The content of a `.safetensors` file or of a `.pt`/`.pth` pickle, memory-mapped; pickles may hold tensors only.

    Args:
        what: the config key or role of the file, for messages.
        remedy: what to do when it is missing.

    Raises:
        UserError: the file is missing, truncated, foreign, or a pickle that would run code.
    """
    path = require_file(path, what, remedy)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{what} {path} is refused: it holds more than tensors, and unpickling it could run code "
            f"({_first_line(error)}); get it from its publisher or convert it to .safetensors"
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


def check_fit(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights whose names or shapes differ from the expected ones.

    Args:
        expected: name -> shape.
        source: the config key and file, for messages.

    Raises:
        UserError: names some of the missing or foreign tensors, or the first of another shape.
    """
    missing = [key for key in expected if key not in tensors]
    foreign = [key for key in tensors if key not in expected]
    if missing or foreign:
        faults = " and ".join(_some(keys, kind) for keys, kind in ((missing, "missing"), (foreign, "foreign")) if keys)
        raise UserError(f"{source} does not fit: {faults}; is it the right file for this model?")
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise UserError(
                f"{source} does not fit: {key} is {list(tensors[key].shape)} where the model has {list(shape)}; "
                "it belongs to a model of another size"
            )


def fill(
    model: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: str,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Give a model on the meta device its weights, each straight to its device and dtype; see `check_fit`."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    check_fit(expected, tensors, source)
    # A copy even where nothing changes, so that no weight stays mapped to its file; tied weights stay tied.
    copies: dict[int, torch.Tensor] = {}
    for key in expected:
        if id(tensors[key]) not in copies:
            copies[id(tensors[key])] = tensors[key].to(device=device, dtype=dtype, copy=True)
    model.load_state_dict({key: copies[id(tensors[key])] for key in expected}, assign=True)
    model.eval().requires_grad_(False)


def _some(keys: list[str], kind: str) -> str:
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return f"{', '.join(keys[:2])}{more} {'is' if len(keys) == 1 else 'are'} {kind}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
