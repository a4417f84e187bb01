"""Folders of videos, paired: which video of one method answers which of another."""

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.video.record import Record, read_record, record_path
from utils.errors import UserError

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
OTHER_SUFFIXES = (".gif", ".webp", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp")
WANTED = "give folders of videos, or videos"

Key = tuple[str, int]  # prompt (its number, or what the file name says), sample


@dataclass(frozen=True)
class Problem:
    """Something that could not be evaluated or is not comparable: which file or folder, and why."""

    place: str
    why: str


@dataclass
class Method:
    """A folder of videos under one name, and what their runs wrote beside them."""

    name: str
    path: Path
    videos: dict[Key, Path] = field(default_factory=dict)
    records: dict[Key, Record] = field(default_factory=dict)

    def record(self, key: Key) -> Record:
        """The record of a video; an empty one where there is none."""
        return self.records.get(key, Record())


def find(arguments: Sequence[str]) -> tuple[list[Method], list[Problem]]:
    """Read the command line's `[NAME=]FOLDER`s, or `[NAME=]FILE`s.

    Returns:
        Methods that have videos, and what is wrong with the others.

    Raises:
        UserError: a path does not exist, or nothing is left.
    """
    methods: list[Method] = []
    problems: list[Problem] = []
    for argument in arguments:
        name, path = split_name(argument, WANTED)
        method = Method(_unique(name or _name_of(path), path, methods), path)
        problems += fill(method)
        if method.videos:
            methods.append(method)
        else:
            problems.append(Problem(str(path), "is a folder without videos"))
    if not methods:
        listed = ", ".join(arguments)
        raise UserError(f"no videos ({', '.join(SUFFIXES)}) in {listed}; {WANTED}")
    _pair_single_videos(methods)
    return methods, problems


def split_name(argument: str, remedy: str) -> tuple[str, Path]:
    """`NAME=PATH` or `PATH` as a name and a path that exists; `=` may be part of either.

    An argument that is a path as it stands is one, and has an empty name. Else the name is the shortest that
    leaves a path.
    """
    if not argument:
        raise UserError(f"an empty argument stands for no path; {remedy}")
    path = Path(argument)
    if _exists(path):
        return "", path
    if argument.startswith("="):
        raise UserError(f"'{argument}' has no name before the =; {remedy}")
    for equals in re.finditer("=", argument):
        name = argument[: equals.start()]
        path = Path(argument[equals.end() :])
        if argument[equals.end() :] and _exists(path):
            return name, path
    raise UserError(f"{argument.partition('=')[2] or argument} does not exist; {remedy}")


def fill(method: Method) -> list[Problem]:
    """Find a method's videos and their records; what is wrong with those that are left out."""
    files, problems = list_videos(method.path)
    for file in files:
        record = read_record(file)
        if record.fault:
            problems.append(Problem(str(record_path(file)), record.fault))
        key = key_of(file, record)
        if key in method.videos:
            problems.append(Problem(str(file), f"has the prompt and sample of {method.videos[key].name}"))
        else:
            method.videos[key] = file
            method.records[key] = record
    return problems


def list_videos(path: Path) -> tuple[list[Path], list[Problem]]:
    """The videos of a folder, or the one at `path`, and the files that look like videos but are left out."""
    if path.is_file():
        if path.suffix and path.suffix.lower() not in (*SUFFIXES, *OTHER_SUFFIXES):
            raise UserError(f"{path} is no video ({', '.join(SUFFIXES)}); {WANTED}")
        return [path], []
    try:
        files = sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {WANTED}") from error
    videos = []
    problems = []
    for file in files:
        suffix = file.suffix.lower()
        if file.name.startswith("."):
            continue  # a run's unfinished video, or a file system's own
        if suffix in OTHER_SUFFIXES:
            problems.append(Problem(str(file), f"is left out: {suffix} files are not measured; convert it to mp4"))
        elif suffix in SUFFIXES and not file.is_file():
            problems.append(Problem(str(file), "is not a file"))
        elif suffix in SUFFIXES:
            videos.append(file)
    return videos, problems


def key_of(path: Path, record: Record) -> Key:
    """Prompt and sample of a video: from `00012-0.mp4`, from its record, or else from its name.

    A name without a number at its end is sample 0.
    """
    name, _, number = path.stem.rpartition("-")
    if re.fullmatch(r"\d+", name) and number.isdecimal():
        return f"{int(name):05d}", int(number)
    if record.number is not None:
        prompt, sample = record.number
        return f"{prompt:05d}", sample
    if name and re.fullmatch(r"\d{1,6}", number):
        return name, int(number)
    return path.stem, 0


def unpaired(methods: Sequence[Method]) -> list[Problem]:
    """Videos that not every method has."""
    every: set[Key] = set()
    for method in methods:
        every.update(method.videos)
    problems = []
    for method in methods:
        for prompt, sample in sorted(every - set(method.videos)):
            problems.append(Problem(str(method.path), f"has no video of prompt {prompt}, sample {sample}"))
    return problems


def _pair_single_videos(methods: Sequence[Method]) -> None:
    """Where each method has one video, these are meant for one another, whatever their names."""
    keys: set[Key] = set()
    for method in methods:
        if len(method.videos) > 1:
            return
        keys.update(method.videos)
    if len(keys) == 1:
        return
    for method in methods:
        (key,) = method.videos
        method.videos = {("video", 0): method.videos[key]}
        method.records = {("video", 0): method.records[key]}


def _unique(name: str, path: Path, methods: Sequence[Method]) -> str:
    taken = {method.name for method in methods}
    if name in taken:
        name = f"{path.resolve().parent.name}/{name}"
    base = name
    number = 2
    while name in taken:
        name = f"{base} ({number})"
        number += 1
    return name


def _name_of(path: Path) -> str:
    if path.is_file():
        return path.stem
    return path.resolve().name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise UserError(f"{path} cannot be read: {error.strerror}; {WANTED}") from error
