"""Typed, frozen settings: dataclass defaults < YAML file < dotted command-line overrides."""

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from utils.errors import UserError, did_you_mean
from utils.processes import rank

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
    settings = OmegaConf.structured(schema)
    if path is not None:
        settings = _guard(partial(OmegaConf.merge, settings, _without(_read(path), retired)), path, schema)
    if isinstance(overrides, Mapping):
        tree = _without(OmegaConf.create(dict(overrides)), retired)
        settings = _guard(partial(OmegaConf.merge, settings, tree), "the overrides", schema)
    else:
        overrides = list(overrides)
        if {"-h", "--help"} & set(overrides):
            _help()
        for key, value in map(_split, overrides):
            if key not in retired:
                _require_parts(key, schema)
                typed = OmegaConf.create()
                OmegaConf.update(typed, key, value)
                settings = _guard(partial(OmegaConf.merge, settings, typed), "the command line", schema)
    return _guard(partial(OmegaConf.to_object, settings), path or "the settings", schema)


def retired_keys(path: str | Path, retired: Collection[str]) -> list[str]:
    """Which of the `retired` dotted keys a YAML file still sets."""
    tree = _read(path)
    return [key for key in retired if OmegaConf.select(tree, key) is not None]


def to_dict(settings: Any) -> dict[str, Any]:
    """The resolved tree as plain data, ready for JSON or YAML."""
    return dataclasses.asdict(settings)


def choose(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a `value` of setting `name` that is not among `choices`."""
    if value not in choices:
        raise UserError(
            f"setting '{name}' is '{value}', which is not one of {', '.join(choices)}{did_you_mean(value, choices)}"
        )


def _read(path: str | Path) -> DictConfig:
    try:
        tree = OmegaConf.load(path)
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


def _help() -> NoReturn:
    if rank() == 0:
        print((sys.modules["__main__"].__doc__ or "").strip(), flush=True)
    sys.exit(0)


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
        nested = field.default_factory if dataclasses.is_dataclass(field.default_factory) else field.type
        if dataclasses.is_dataclass(nested):
            yield from _names(nested, f"{prefix}{field.name}.")
