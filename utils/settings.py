"""Typed, frozen settings: dataclass defaults < YAML file < dotted command-line overrides.

A settings class says of each field what it means and what it may be:

    @dataclass(frozen=True, kw_only=True)
    class Video(Settings):
        fps: int = setting(16, "frames a second of the mp4", at_least=1)

The same words make `--help`, docs/settings.md and the message that refuses a wrong value.
"""

import dataclasses
import inspect
import math
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from utils.errors import UserError, did_you_mean
from utils.paths import read_path, written_path
from utils.processes import rank

T = TypeVar("T")
LARGEST = 10**9  # of a number whose own bounds say nothing: no count or weight in this project comes near it
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "y", "n", "1", "0")
BOUNDS = {  # keyword of `setting` -> (test of a value against the bound, words of a refusal)
    "at_least": (lambda value, bound: value >= bound, "at least"),
    "above": (lambda value, bound: value > bound, "above"),
    "at_most": (lambda value, bound: value <= bound, "at most"),
    "below": (lambda value, bound: value < bound, "below"),
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
            _require_in_range(field, getattr(self, field.name), field.name)


def combined(name: str, *parts: type[Settings]) -> type[Settings]:
    """A settings class with the fields of several, of which those of one name must mean the same."""
    found: dict[str, tuple[str, Any, dataclasses.Field]] = {}
    for part in parts:
        for field in dataclasses.fields(part):
            if "meaning" not in field.metadata or field.name in found:
                continue
            metadata = {**field.metadata, "group": _group(part, field)}
            copy = dataclasses.field(metadata=metadata, **_given_default(field))
            found[field.name] = (field.name, field.type, copy)
    made = dataclasses.make_dataclass(name, found.values(), bases=(Settings,), frozen=True, kw_only=True)
    made.__module__ = sys._getframe(1).f_globals["__name__"]  # where it can be found by name, as pickle asks
    return made


def load_settings(
    schema: type[T],
    path: str | Path | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    retired: Collection[str] = (),
) -> T:
    """Build `schema`, a frozen dataclass of dataclasses, from its defaults, a YAML file and overrides.

    Args:
        path: YAML file with the same tree, or None.
        overrides: `["a.b=1", ...]` as typed on a command line, or a tree of values. `-h` or `--help` among those
            typed prints the docstring of the running program and ends it.
        retired: dotted keys that mean nothing any more; accepted and dropped (see `retired_keys`).

    Raises:
        UserError: unknown key (with the nearest known one), value of the wrong type, unreadable file.
    """
    settings = OmegaConf.structured(schema)
    if path is not None:
        settings = _merge(settings, _without(_read(path), retired), path, schema)
    if isinstance(overrides, Mapping):
        tree = _without(OmegaConf.create(dict(overrides)), retired)
        settings = _merge(settings, tree, "the overrides", schema)
    else:
        overrides = list(overrides)
        if {"-h", "--help"} & set(overrides):
            print_help(schema)
            sys.exit(0)
        for key, value in map(_split, overrides):
            if key not in retired:
                _require_parts(key, schema)
                typed = OmegaConf.create()
                OmegaConf.update(typed, key, value)
                try:
                    settings = _merge(settings, typed, "the command line", schema)
                except TypeError as error:  # a list where a table is due, or the reverse
                    raise UserError(f"setting '{key}' in the command line is of the wrong form: {value}") from error
    values = _guard(partial(OmegaConf.to_container, settings, resolve=True), path or "the settings", schema)
    _require_ranges(schema, values)
    found = OmegaConf.create()
    for key, path_meant in _paths(schema, values):
        OmegaConf.update(found, key, path_meant)
    settings = OmegaConf.merge(settings, found)
    return _guard(partial(OmegaConf.to_object, settings), path or "the settings", schema)


def retired_keys(path: str | Path, retired: Collection[str]) -> list[str]:
    """Which of the `retired` dotted keys a YAML file still sets."""
    tree = _read(path)
    return [key for key in retired if OmegaConf.select(tree, key) is not None]


def to_dict(settings: Any) -> dict[str, Any]:
    """The resolved tree as plain data, ready for JSON or YAML."""
    return dataclasses.asdict(settings)


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a `value` of setting `name` that is not among `choices`."""
    if value not in choices:
        raise UserError(
            f"setting '{name}' is '{value}', which is not one of {', '.join(choices)}{did_you_mean(value, choices)}"
        )


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
        nested = _nested(field)
        if nested:
            found += described(nested, f"{prefix}{field.name}.")
            continue
        if "meaning" not in field.metadata:
            continue
        found.append(Described(_group(schema, field), prefix + field.name, _default(field), _meaning(field)))
    return found


def print_help(schema: type) -> None:
    """The running program's docstring and its settings."""
    if rank() > 0:
        return
    print((sys.modules["__main__"].__doc__ or "").strip())
    group = None
    for entry in described(schema):
        if entry.group != group:
            group = entry.group
            print(f"\n{group}")
        print(f"  {entry.name}={entry.default}  {entry.meaning}")


def places(schema: type, prefix: str = "") -> set[str]:
    """Dotted names of the settings that say where or how fast, not what is made."""
    found = set()
    for field in dataclasses.fields(schema):
        nested = _nested(field)
        if field.metadata.get("place"):
            found.add(prefix + field.name)
        elif nested:
            found |= places(nested, f"{prefix}{field.name}.")
    return found


def _nested(field: dataclasses.Field) -> type | None:
    """The settings class that a field holds, if it holds one; also where it may be None instead."""
    for kind in (field.default_factory, field.type, *typing.get_args(field.type)):
        if dataclasses.is_dataclass(kind):
            return kind
    return None


def _group(schema: type, field: dataclasses.Field) -> str:
    """The first words of the class that defines a field, of those that `schema` inherits from."""
    if "group" in field.metadata:
        return field.metadata["group"]
    owner = next(base for base in schema.__mro__ if field.name in inspect.get_annotations(base))
    return (owner.__doc__ or "").strip().partition("\n")[0]


def _given_default(field: dataclasses.Field) -> dict[str, Any]:
    if field.default_factory is not dataclasses.MISSING:
        return {"default_factory": field.default_factory}
    return {"default": field.default}


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "(required)"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _meaning(field: dataclasses.Field) -> str:
    words = field.metadata.get("meaning", "")
    choices = field.metadata.get("choices")
    return f"{words} ({', '.join(choices)})" if choices else words


def _merge(settings: DictConfig, tree: DictConfig, source: str | Path, schema: type) -> DictConfig:
    """The settings with those of `tree` in their place."""
    _require_forms(schema, OmegaConf.to_container(tree), source)
    return _guard(partial(OmegaConf.merge, settings, tree), source, schema)


def _require_forms(schema: type, values: Mapping[Any, Any], source: str | Path, prefix: str = "") -> None:
    """Refuse values of a wrong form that OmegaConf takes or refuses without their name."""
    kinds = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        value, kind, name = values.get(field.name), kinds[field.name], prefix + field.name
        if value is None:
            continue
        if value == MISSING:  # OmegaConf would take the default in silence
            raise UserError(f"setting '{name}' in {source} is {value}, which stands for no value; give one")
        origin, nested = typing.get_origin(kind), _nested(field)
        if nested and origin not in (list, dict):
            if not isinstance(value, Mapping):
                known = dataclasses.fields(nested)[0].name
                raise UserError(f"setting '{name}' in {source} is {value}; it is a group, set {name}.{known} and such")
            _require_forms(nested, value, source, f"{name}.")
        elif kind is bool and str(value).lower() not in BOOLEANS:
            raise UserError(f"setting '{name}' in {source} is {value}; it must be true or false")
        elif isinstance(value, list):
            _require_items(value, kind, f"setting '{name}' in {source}")


def _require_items(values: list, kind: Any, what: str) -> None:
    """Refuse a list of numbers or words that holds something else; `kind` is the type of the whole list."""
    lists = [part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) in (list, tuple)]
    inner = typing.get_args(lists[0])[0] if lists else None
    words = {int: "whole numbers", float: "numbers", str: "words"}.get(inner)
    if words is None:
        return
    for value in values:
        try:
            if isinstance(value, list | Mapping):  # as text they would pass for words
                raise ValueError
            inner(str(value))
        except ValueError as error:
            raise UserError(f"{what} holds {value}; it must be a list of {words}") from error


def _require_ranges(schema: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Check a tree of plain values against the classes, by the dotted names that a user writes."""
    for field in dataclasses.fields(schema):
        value = values.get(field.name)
        nested = _nested(field)
        if nested and isinstance(value, Mapping):
            _require_ranges(nested, value, f"{prefix}{field.name}.")
        elif value != MISSING:
            _require_in_range(field, value, prefix + field.name)


def _paths(schema: type, values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Dotted names of the settings that name files or folders, and the paths that are meant."""
    for field in dataclasses.fields(schema):
        value = values.get(field.name)
        nested = _nested(field)
        if nested and isinstance(value, Mapping):
            yield from _paths(nested, value, f"{prefix}{field.name}.")
        elif isinstance(value, str) and value and value != MISSING:
            if field.metadata.get("reads"):
                yield prefix + field.name, str(read_path(value)).replace("${", r"\${")
            if field.metadata.get("writes"):
                yield prefix + field.name, str(written_path(value)).replace("${", r"\${")


def _require_in_range(field: dataclasses.Field, value: Any, name: str) -> None:
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


def _read(path: str | Path) -> DictConfig:
    try:
        tree = OmegaConf.load(read_path(path))
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror}; the shipped ones are in configs/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, DictConfig) or not tree:
        raise UserError(f"config {path} holds no keys; compare it with the ones in configs/")
    return tree


def _without(tree: DictConfig, keys: Collection[str]) -> DictConfig:
    for key in keys:
        parent, _, leaf = key.rpartition(".")
        group = OmegaConf.select(tree, parent) if parent else tree
        if isinstance(group, DictConfig):
            group.pop(leaf, None)
    return tree


def _split(override: str) -> tuple[str, Any]:
    """`key=value` to its parts; lists are parsed here, numbers and booleans by the field's own type."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}' is not of the form key=value")
    if text.startswith("[") and text.endswith("]"):
        try:
            return key, yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"override '{override}' is not a list; write it as {key}=[a,b,...]") from error
    return key, None if text == "null" else text.replace("${", r"\${")


def _require_parts(key: str, schema: type) -> None:
    """Refuse a dotted key with nothing before, after or between dots."""
    if not all(key.split(".")):
        parts = ".".join(part for part in key.split(".") if part)
        raise UserError(f"unknown setting '{key}' in the command line{did_you_mean(parts, _names(schema))}")


def _guard(action: Callable[[], Any], source: str | Path, schema: type) -> Any:
    """Run `action`; OmegaConf's errors become one line that names the key and its source."""
    try:
        return action()
    except (ConfigKeyError, ConfigAttributeError) as error:
        name = error.full_key or str(error.key)
        known = list(_names(schema))
        leaf = {n.rpartition(".")[2]: n for n in known}
        hint = did_you_mean(name, known) or did_you_mean(leaf.get(name.rpartition(".")[2], name), known)
        raise UserError(f"unknown setting '{name}' in {source}{hint}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        name = f"setting '{error.full_key}'" if error.full_key else "a setting"
        raise UserError(f"{name} in {source}: {reason}") from error


def _names(schema: type, prefix: str = "") -> Iterable[str]:
    for field in dataclasses.fields(schema):
        yield prefix + field.name
        if nested := _nested(field):
            yield from _names(nested, f"{prefix}{field.name}.")
