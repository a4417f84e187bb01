"""A finished video that another one is forked from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.timeline import Segment
from utils.errors import UserError


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
        known = {"config": dict, "weights": dict, "prompt": str, "prompt_index": int, "sample": int, "seed": int}
        if any(not isinstance(record[key], kind) for key, kind in known.items()):
            raise ValueError
    except FileNotFoundError as error:
        raise UserError(f"from=, the parent {path}: {record_path} does not exist; name a finished video") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"from=, the parent {path}: {record_path} is no record of a video; name another") from error
    parent = Parent(name, path.parent, record, tuple(scenes) or (Segment(0, record["prompt"]),))
    if not parent.latents.is_file():
        raise UserError(
            f"from=, the parent {path}: {parent.latents} is not there, from which it would go on; make the video "
            "again with keep_latents=true"
        )
    return parent


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
