"""What a file was made of, as a tree of plain values, and whether a run of now would make the same."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError


def require_same(
    path: Path, made_of: Mapping, now: Mapping, remedy: str, defaults: Mapping = {}, apart: Collection[str] = ()
) -> None:
    """Refuse what was made of something else.

    Args:
        path: the file, for the message.
        made_of: the tree kept beside it.
        now: the tree of this run.
        remedy: what to do, for the message.
        defaults: stand for what one of the trees does not have, such as settings that are newer than the file.
        apart: dotted names that need not be the same.

    Raises:
        UserError: names the first value that differs, what it was and what it is now.
    """
    theirs, ours, absent = flat(made_of), flat(now), flat(defaults)
    for name in dict.fromkeys((*ours, *theirs)):
        if name in apart:
            continue
        here = ours.get(name, absent.get(name, "nothing"))
        there = theirs.get(name, absent.get(name, "nothing"))
        if here != there:
            name = name.removeprefix("config.")
            raise UserError(f"{path} was made with {name} {_short(there)}, and this run has {_short(here)}; {remedy}")


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Dotted name -> value of a tree; lists of trees are counted from 0."""
    if isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping):
        return {name: tree}
    found = {}
    for key, part in tree.items():
        found |= flat(part, f"{name}.{key}" if name else str(key))
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else f"{text[:100]}..."
