"""The form of a value: a word, a truth value, a list of numbers or a group."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from utils.errors import UserError
from utils.settings.fields import nested_class

BOOLEANS = ("true", "false", "yes", "no", "on", "off", "y", "n", "1", "0")
ITEMS = {int: "whole numbers", float: "numbers", str: "words"}  # type of a list's items -> its name in a message


def require_forms(schema: type, values: Mapping[Any, Any], source: str | Path, prefix: str = "") -> None:
    """Refuse values of a wrong form that OmegaConf takes or refuses without their name."""
    kinds = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        value = values.get(field.name)
        if value is None:
            continue
        name = prefix + field.name
        if value == MISSING:  # OmegaConf would take the default in silence
            raise UserError(f"setting '{name}' in {source} is {value}, which stands for no value; give one")
        kind = kinds[field.name]
        nested = nested_class(field)
        if nested and typing.get_origin(kind) not in (list, dict):
            if not isinstance(value, Mapping):
                known = dataclasses.fields(nested)[0].name
                raise UserError(f"setting '{name}' in {source} is {value}; it is a group, set {name}.{known} and such")
            require_forms(nested, value, source, f"{name}.")
        elif kind is bool and str(value).lower() not in BOOLEANS:
            raise UserError(f"setting '{name}' in {source} is {value}; it must be true or false")
        elif isinstance(value, list):
            _require_items(value, kind, f"setting '{name}' in {source}")


def _require_items(values: list, kind: Any, what: str) -> None:
    """Refuse a list of numbers or words that holds something else; `kind` is the type of the whole list."""
    item = _type_of_items(kind)
    if item not in ITEMS:
        return
    for value in values:
        try:
            if isinstance(value, list | Mapping):  # as text they would pass for words
                raise ValueError
            item(str(value))
        except ValueError as error:
            raise UserError(f"{what} holds {value}; it must be a list of {ITEMS[item]}") from error


def _type_of_items(kind: Any) -> Any:
    """int of `list[int]` and of `list[int] | None`; None of what is no list."""
    for part in (kind, *typing.get_args(kind)):
        if typing.get_origin(part) in (list, tuple):
            return typing.get_args(part)[0]
    return None
