"""Settings for a person to read: the text of `--help`, and what docs/settings.md is made of."""

import dataclasses
import sys

from utils.processes import rank
from utils.settings.fields import group_of, nested_class

LITERALS = {None: "null", True: "true", False: "false"}  # as YAML writes them


@dataclasses.dataclass(frozen=True)
class Described:
    """One setting for a person to read: in which group, its dotted name, its default, what it means and may be."""

    group: str
    name: str
    default: str
    meaning: str


def described(schema: type, prefix: str = "") -> list[Described]:
    """All settings of a class in order; a group is the class that defines the field, in the words of its docstring."""
    found = []
    for field in dataclasses.fields(schema):
        nested = nested_class(field)
        if nested:
            found += described(nested, f"{prefix}{field.name}.")
        elif "meaning" in field.metadata:
            found.append(Described(group_of(schema, field), prefix + field.name, _default(field), _meaning(field)))
    return found


def print_help(schema: type) -> None:
    """Print the running program's docstring and its settings."""
    if rank() > 0:
        return
    print((sys.modules["__main__"].__doc__ or "").strip())
    group = None
    for entry in described(schema):
        if entry.group != group:
            group = entry.group
            print(f"\n{group}")
        print(f"  {entry.name}={entry.default}  {entry.meaning}")


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "(required)"
    if value is None or isinstance(value, bool):
        return LITERALS[value]
    return str(value)


def _meaning(field: dataclasses.Field) -> str:
    words = field.metadata.get("meaning", "")
    choices = field.metadata.get("choices")
    if choices:
        words += f" ({', '.join(choices)})"
    return words
