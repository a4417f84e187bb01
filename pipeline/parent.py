"""A finished video that another one is forked from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.timeline import Segment
from utils.errors import UserError

SHARED = ("generator_ckpt", "lora_ckpt", "VAE", "tiny_vae_ckpt", "text encoder", "tokenizer")  # roles of weight files


@dataclass(frozen=True)
class Parent:
    """A finished video, as its record and its latents tell.

    Attributes:
        name: of its files, without suffix.
        scenes: its prompts.
    """

    name: str
    folder: Path
    record: Mapping[str, Any]
    scenes: tuple[Segment, ...]

    @property
    def latents(self) -> Path:
        return self.folder / f"{self.name}.latents.npy"


def read_parent(path: str | Path) -> Parent:
    """The video that `path` names, with or without a suffix.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    path = Path(path).expanduser()
    name = path.name.removesuffix(".mp4").removesuffix(".json").removesuffix(".latents.npy")
    record_path = path.with_name(f"{name}.json")
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        scenes = [Segment(**segment) for segment in record.get("scenes", [])]
        known = {
            "config": dict,
            "weights": dict,
            "prompt": str,
            "prompt_index": int,
            "sample": int,
            "seed": int,
            "blocks": list,
        }
        if any(not isinstance(record[key], kind) for key, kind in known.items()):
            raise ValueError
    except FileNotFoundError as error:
        raise UserError(f"from=, the parent {path}: {record_path} does not exist; name a finished video") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"from=, the parent {path}: {record_path} is no record of a video; name another") from error
    return Parent(name, path.parent, record, tuple(scenes) or (Segment(0, record["prompt"]),))


def inherited(parent: Parent, names: Sequence[str]) -> list[str]:
    """Settings that a fork takes from its parent where the command line does not say them, as `key=value`.

    Args:
        names: of those beside the folder.
    """
    found = [f"output_folder={parent.folder}"]
    config = parent.record["config"]
    for name in names:
        if name in config:
            found.append(f"{name}={config[name]}")
    return found


def require_same_weights(parent: Parent, weights: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse to go on with blocks that other weights made."""
    theirs = parent.record["weights"]
    for role in dict.fromkeys((*theirs, *weights)):
        if not role.startswith(SHARED):
            continue
        here, there = weights.get(role), theirs.get(role)
        if here is None or there is None or here["sha256"] != there["sha256"]:
            mine = here["file"] if here else "nothing"
            its = there["file"] if there else "nothing"
            raise UserError(
                f"from {parent.name} was made with {role} {its}, and this run has {mine}: other weights; its blocks "
                "can only be gone on with by the weights that made them"
            )
