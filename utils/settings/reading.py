"""From a YAML file and a command line to an object of a settings class."""

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from utils.errors import UserError, did_you_mean
from utils.paths import read_path, written_path
from utils.settings.fields import names, nested_class, require_in_range
from utils.settings.forms import require_forms
from utils.settings.help import print_help

T = TypeVar("T")


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
    tree = OmegaConf.structured(schema)
    if path is not None:
        tree = _merge(tree, _without(_read(path), retired), path, schema)
    if isinstance(overrides, Mapping):
        given = _without(OmegaConf.create(dict(overrides)), retired)
        tree = _merge(tree, given, "the overrides", schema)
    else:
        tree = _merge_typed(tree, list(overrides), retired, schema)
    source = path or "the settings"
    values = _guard(partial(OmegaConf.to_container, tree, resolve=True), source, schema)
    _require_ranges(schema, values)
    paths = OmegaConf.create()
    for key, path_meant in _paths(schema, values):
        OmegaConf.update(paths, key, path_meant)
    tree = OmegaConf.merge(tree, paths)
    return _guard(partial(OmegaConf.to_object, tree), source, schema)


def retired_keys(path: str | Path, retired: Collection[str]) -> list[str]:
    """Which of the `retired` dotted keys a YAML file still sets."""
    tree = _read(path)
    return [key for key in retired if OmegaConf.select(tree, key) is not None]


def _read(path: str | Path) -> DictConfig:
    """The tree in a YAML file."""
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


def _merge(tree: DictConfig, given: DictConfig, source: str | Path, schema: type) -> DictConfig:
    """The tree with the values of `given` in place of its own."""
    require_forms(schema, OmegaConf.to_container(given), source)
    return _guard(partial(OmegaConf.merge, tree, given), source, schema)


def _merge_typed(tree: DictConfig, typed: list[str], retired: Collection[str], schema: type) -> DictConfig:
    """The tree with what was typed as `key=value` in place of its own; prints the help where that is asked for."""
    if "-h" in typed or "--help" in typed:
        print_help(schema)
        sys.exit(0)
    for override in typed:
        key, value = _split(override)
        if key in retired:
            continue
        _require_parts(key, schema)
        given = OmegaConf.create()
        OmegaConf.update(given, key, value)
        try:
            tree = _merge(tree, given, "the command line", schema)
        except TypeError as error:  # a list where a table is due, or the reverse
            raise UserError(f"setting '{key}' in the command line is of the wrong form: {value}") from error
    return tree


def _split(override: str) -> tuple[str, Any]:
    """`key=value` to its parts; lists are parsed here, numbers and booleans by the field's own type."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}' is not of the form key=value")
    if text == "null":
        return key, None
    if text.startswith("[") and text.endswith("]"):
        try:
            return key, yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"override '{override}' is not a list; write it as {key}=[a,b,...]") from error
    return key, _literal(text)


def _literal(text: str) -> str:
    """`text` as OmegaConf takes it word for word: it would replace a `${name}`."""
    return text.replace("${", r"\${")


def _require_parts(key: str, schema: type) -> None:
    """Refuse a dotted key with nothing before, after or between dots."""
    parts = key.split(".")
    if "" in parts:
        hint = did_you_mean(".".join(filter(None, parts)), names(schema))
        raise UserError(f"unknown setting '{key}' in the command line{hint}")


def _guard(action: Callable[[], Any], source: str | Path, schema: type) -> Any:
    """Run `action`; OmegaConf's errors become one line that names the key and its source."""
    try:
        return action()
    except (ConfigKeyError, ConfigAttributeError) as error:
        name = error.full_key or str(error.key)
        raise UserError(f"unknown setting '{name}' in {source}{_nearest(name, schema)}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        name = f"setting '{error.full_key}'" if error.full_key else "a setting"
        raise UserError(f"{name} in {source}: {reason}") from error


def _nearest(name: str, schema: type) -> str:
    """A hint at the setting that was meant, by its dotted name or by its last part alone."""
    known = list(names(schema))
    hint = did_you_mean(name, known)
    if hint:
        return hint
    by_last_part = {}
    for dotted in known:
        by_last_part[dotted.rpartition(".")[2]] = dotted
    last = name.rpartition(".")[2]
    return did_you_mean(by_last_part.get(last, name), known)


def _require_ranges(schema: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Check a tree of plain values against the classes, by the dotted names that a user writes."""
    for field in dataclasses.fields(schema):
        value = values.get(field.name)
        nested = nested_class(field)
        if nested and isinstance(value, Mapping):
            _require_ranges(nested, value, f"{prefix}{field.name}.")
        elif value != MISSING:
            require_in_range(field, value, prefix + field.name)


def _paths(schema: type, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of the settings that name files or folders, and the paths that are meant."""
    for field in dataclasses.fields(schema):
        value = values.get(field.name)
        nested = nested_class(field)
        if nested and isinstance(value, Mapping):
            yield from _paths(nested, value, f"{prefix}{field.name}.")
        elif isinstance(value, str) and value and value != MISSING:
            if field.metadata.get("reads"):
                yield prefix + field.name, _literal(str(read_path(value)))
            if field.metadata.get("writes"):
                yield prefix + field.name, _literal(str(written_path(value)))
