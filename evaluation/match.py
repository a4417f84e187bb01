"""Folders of videos, matched: which video of one method answers which of another."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError

Key = tuple[str, int]  # prompt (its number, or what the file name says), sample


@dataclass(frozen=True)
class Problem:
    """Something that could not be evaluated or is not comparable: which file or folder, and why."""

    place: str
    why: str


@dataclass
class Method:
    """A folder of videos under one name."""

    name: str
    path: Path
    videos: dict[Key, Path] = field(default_factory=dict)


def find(arguments: Sequence[str]) -> tuple[list[Method], list[Problem]]:
    """Read the command line's `[NAME=]FOLDER`s, or `[NAME=]FILE.mp4`s.

    Returns:
        Methods that have videos, and what is wrong with the others.

    Raises:
        UserError: a path does not exist, or nothing is left.
    """
    methods, problems = [], []
    for argument in arguments:
        name, equals, path = argument.rpartition("=")
        path = Path(path if equals and not Path(argument).exists() else argument)
        if not path.exists():
            raise UserError(f"{path} does not exist; give folders of mp4 files, or mp4 files")
        if not name or Path(argument).exists():
            name = path.stem if path.is_file() else path.resolve().name
        method = Method(_unique(name, path, methods), path)
        files = [path] if path.is_file() else sorted(p for p in path.glob("*.mp4") if p.is_file() and p.name[0] != ".")
        for file in files:
            key = key_of(file)
            if key in method.videos:
                problems.append(Problem(str(file), f"has the prompt and sample of {method.videos[key].name}"))
            else:
                method.videos[key] = file
        if method.videos:
            methods.append(method)
        else:
            problems.append(Problem(str(path), "is a folder without mp4 files"))
    if not methods:
        raise UserError(f"no mp4 files in {', '.join(arguments)}; give folders of mp4 files, or mp4 files")
    alone = all(len(method.videos) == 1 for method in methods)
    if alone and len({key for method in methods for key in method.videos}) > 1:  # they are meant for one another
        for method in methods:
            method.videos = {("video", 0): next(iter(method.videos.values()))}
    return methods, problems


def key_of(path: Path) -> Key:
    """Prompt and sample of a video: from `00012-0.mp4`, from the JSON beside it, or else from its name.

    A name without a number at its end is sample 0.
    """
    name, _, number = path.stem.rpartition("-")
    if re.fullmatch(r"\d+", name) and number.isdecimal():
        return f"{int(name):05d}", int(number)
    record = record_of(path)
    if isinstance(record.get("prompt_index"), int) and isinstance(record.get("sample"), int):
        return f"{record['prompt_index']:05d}", record["sample"]
    if name and re.fullmatch(r"\d{1,6}", number):
        return name, int(number)
    return path.stem, 0


def record_of(path: Path) -> dict:
    """The JSON that a run of this toolkit wrote beside the video; empty where there is none."""
    try:
        record = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def unpaired(methods: Sequence[Method]) -> list[Problem]:
    """Videos that not every method has."""
    every = {key for method in methods for key in method.videos}
    return [
        Problem(str(method.path), f"has no video of prompt {key[0]}, sample {key[1]}")
        for method in methods
        for key in sorted(every - set(method.videos))
    ]


def _unique(name: str, path: Path, methods: Sequence[Method]) -> str:
    taken = {method.name for method in methods}
    if name in taken:
        name = f"{path.resolve().parent.name}/{name}"
    number, base = 2, name
    while name in taken:
        name, number = f"{base} ({number})", number + 1
    return name
