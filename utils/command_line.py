"""Command lines: those of `key=value` settings as people type them, and those of options, whose errors are one line."""

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn

from utils.errors import UserError
from utils.paths import written_path

LARGEST = 10**6  # of an option that counts something; each command's own limits are lower


def as_overrides(arguments: Sequence[str], flags: Collection[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Split a command line into the flags asked for and the rest.

    `--key value` and `--key=value` mean `key=value`, with `-` in a key as `_`; a flag at the end or before another
    flag means true. `-h` and `--help` stay as they are.

    Returns:
        (flag -> value, of those in `flags`; everything else in order, as `key=value` where it was a flag)
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument in ("-h", "--help") or not argument.startswith("--"):
            rest.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        key = key.replace("-", "_")
        if not key:
            raise UserError(f"'{argument}' is no setting; write key=value")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        if key in flags:
            found[key] = value
        else:
            rest.append(f"{key}={value}")
    return found, rest


class Parser(argparse.ArgumentParser):
    """Shows its epilog as it is written, and raises a `UserError` for a wrong command."""

    def __init__(self, **settings) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{' '.join(message.split())}; {self.prog} --help says more")


def whole_number(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"'{text[:40]}' is no whole number from {least} to {most}")
        return number

    return parse


def folder_name(text: str) -> Path:
    """The type of an option that names a folder to write to."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; name a folder")
    return written_path(text)
