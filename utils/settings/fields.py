"""What a setting is: a field of a dataclass with its meaning and the values that it may have."""

import dataclasses
import inspect
import math
import operator
import sys
import typing
from collections.abc import Collection, Iterator
from typing import Any

from utils.errors import UserError, did_you_mean

LARGEST = 10**9  # of a number whose own bounds say nothing: no count or weight in this project comes near it
BOUNDS = {  # keyword of `setting` -> (test of a value against the bound, words of a refusal)
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def setting(
    default: Any,
    meaning: str,
    choices: Collection[str] = (),
    place: bool = False,
    reads: bool = False,
    writes: bool = False,
    **bounds: float,
) -> Any:
    """A field of a settings class.

    Args:
        default: its value where nobody sets it; lists, dictionaries and settings classes are made anew each time.
        meaning: one plain phrase, with the unit.
        choices: the words it may be; a table counts by its names.
        place: it says where, how fast or how much at once, not what is made: results that differ in it are the same.
        reads: it names a file or folder that is read; see `utils.paths.read_path`.
        writes: it names a file or folder that is written; see `utils.paths.written_path`.
        bounds: `at_least`, `above`, `at_most`, `below`; for a list, of each of its numbers.
    """
    assert bounds.keys() <= BOUNDS.keys(), bounds
    metadata = {"meaning": meaning, "choices": choices, "place": place, "bounds": bounds}
    metadata |= {"reads": reads, "writes": writes}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings classes; a value out of its range is refused when the object is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require_in_range(field, getattr(self, field.name), field.name)


def combined(name: str, *parts: type[Settings]) -> type[Settings]:
    """A settings class with the fields of several, of which those of one name must mean the same."""
    found: dict[str, tuple[str, Any, dataclasses.Field]] = {}
    for part in parts:
        for field in dataclasses.fields(part):
            if "meaning" not in field.metadata or field.name in found:
                continue
            metadata = {**field.metadata, "group": group_of(part, field)}
            copy = dataclasses.field(metadata=metadata, **_given_default(field))
            found[field.name] = (field.name, field.type, copy)
    made = dataclasses.make_dataclass(name, found.values(), bases=(Settings,), frozen=True, kw_only=True)
    made.__module__ = sys._getframe(1).f_globals["__name__"]  # where it can be found by name, as pickle asks
    return made


def to_dict(settings: Any) -> dict[str, Any]:
    """The resolved tree as plain data, ready for JSON or YAML."""
    return dataclasses.asdict(settings)


def places(schema: type, prefix: str = "") -> set[str]:
    """Dotted names of the settings that say where or how fast, not what is made."""
    found = set()
    for field in dataclasses.fields(schema):
        nested = nested_class(field)
        if field.metadata.get("place"):
            found.add(prefix + field.name)
        elif nested:
            found |= places(nested, f"{prefix}{field.name}.")
    return found


def names(schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings and groups."""
    for field in dataclasses.fields(schema):
        yield prefix + field.name
        if nested := nested_class(field):
            yield from names(nested, f"{prefix}{field.name}.")


def nested_class(field: dataclasses.Field) -> type | None:
    """The settings class that a field holds, if it holds one; also where it may be None instead."""
    for kind in (field.default_factory, field.type, *typing.get_args(field.type)):
        if dataclasses.is_dataclass(kind):
            return kind
    return None


def group_of(schema: type, field: dataclasses.Field) -> str:
    """The first line of the docstring of the class that defines a field, of those that `schema` inherits from."""
    if "group" in field.metadata:
        return field.metadata["group"]
    owner = next(base for base in schema.__mro__ if field.name in inspect.get_annotations(base))
    return (owner.__doc__ or "").strip().partition("\n")[0]


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a `value` of setting `name` that is not among `choices`."""
    if value not in choices:
        raise UserError(
            f"setting '{name}' is '{value}', which is not one of {', '.join(choices)}{did_you_mean(value, choices)}"
        )


def require_in_range(field: dataclasses.Field, value: Any, name: str) -> None:
    """Refuse a value that the field's choices or bounds do not allow; `name` is the setting's in the message."""
    if field.metadata.get("writes") and value == "":
        raise UserError(f"setting '{name}' is empty; say where to write")
    if field.metadata.get("choices") and value is not None:
        require_choice(name, value, field.metadata["choices"])
    numbers = value if isinstance(value, list | tuple) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if not math.isfinite(number):
            raise UserError(f"setting '{name}' is {number}; it must be a finite number")
        for word, bound in _bounds(field).items():
            holds, words = BOUNDS[word]
            if not holds(number, bound):
                raise UserError(f"setting '{name}' is {number}; it must be {words} {bound}")


def _bounds(field: dataclasses.Field) -> dict[str, float]:
    """A setting's own bounds, and the widest there are where it has none."""
    bounds = dict(field.metadata.get("bounds", {}))
    if not bounds.keys() & {"at_least", "above"}:
        bounds["at_least"] = -LARGEST
    if not bounds.keys() & {"at_most", "below"}:
        bounds["at_most"] = LARGEST
    return bounds


def _given_default(field: dataclasses.Field) -> dict[str, Any]:
    if field.default_factory is not dataclasses.MISSING:
        return {"default_factory": field.default_factory}
    return {"default": field.default}
