"""Turns command lines as people type them into `key=value` settings."""

from collections.abc import Collection, Sequence

from utils.errors import UserError


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
