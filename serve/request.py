"""What a person asks for: a take, described in plain values that come from outside."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipeline.backbones import METHODS
from pipeline.scenes import SWITCHES
from utils.errors import UserError, did_you_mean
from utils.moving import FITS
from utils.settings import require_choice

LONGEST_PROMPT = 8000  # characters
LONGEST_TITLE = 120
LONGEST_VALUE = 200
MOST_SETTINGS = 40
LARGEST_SEED = 10**15


@dataclass(frozen=True, kw_only=True)
class Request:
    """A take as it was asked for.

    Attributes:
        prompt: may be a timeline, `a harbour[5s] | a market`. Empty for a fork: its parent's goes on.
        frames: length in latent frames; None for that of the method's configuration.
        switch: what happens where the prompt changes.
        settings: further settings, as `key=value` has them.
        start: name of an upload that the video begins with.
        fit: how it is brought to the video's shape.
        parent: number of the take that is forked; from `at` on, or in the span `redo`.
        pair: number of the take that is made side by side with this one.
    """

    prompt: str = ""
    method: str = "native"
    title: str = ""
    seed: int | None = None
    frames: int | None = None
    switch: str = "text"
    settings: Mapping[str, str] = field(default_factory=dict)
    start: str | None = None
    fit: str = "cover"
    parent: int | None = None
    at: str | None = None
    redo: str | None = None
    keep_after: bool = False
    pair: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_request(content: Any) -> Request:
    """A request from JSON.

    Raises:
        UserError: names the field.
    """
    if not isinstance(content, Mapping):
        raise UserError("a request is a JSON object with the fields prompt, method and such")
    known = [field.name for field in fields(Request)]
    for name in content:
        if name not in known:
            raise UserError(f"a request has no field '{str(name)[:40]}'{did_you_mean(str(name), known)}")
    request = Request(
        prompt=_text(content, "prompt", LONGEST_PROMPT),
        method=_text(content, "method", 60) or "native",
        title=_text(content, "title", LONGEST_TITLE),
        seed=_number(content, "seed", -LARGEST_SEED, LARGEST_SEED),
        frames=_number(content, "frames", 1, 10**7),
        switch=_text(content, "switch", 60) or "text",
        settings=_settings(content.get("settings") or {}),
        start=_text(content, "start", 60) or None,
        fit=_text(content, "fit", 20) or "cover",
        parent=_number(content, "parent", 1, 10**9),
        at=_text(content, "at", 20) or None,
        redo=_text(content, "redo", 40) or None,
        keep_after=_flag(content, "keep_after"),
        pair=_number(content, "pair", 1, 10**9),
    )
    require_choice("method", request.method, METHODS)
    require_choice("switch", request.switch, SWITCHES)
    require_choice("fit", request.fit, FITS)
    if request.parent is None and not request.prompt.strip():
        raise UserError("prompt is empty; describe a video")
    if request.parent is None and (request.at or request.redo):
        raise UserError("at and redo belong to a fork; give parent, too")
    if request.parent is not None and (request.at is None) == (request.redo is None):
        raise UserError("a fork needs at, such as 12s, or redo, such as 12s-15s")
    if request.parent is not None and request.start:
        raise UserError("a fork starts from its parent; leave start out")
    return request


def clean_text(value: Any, name: str, longest: int) -> str:
    """A text from outside: of bounded length, without half characters or control characters.

    Raises:
        UserError: names it.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text")
    if len(value) > longest:
        raise UserError(f"{name} has {len(value)} characters; at most {longest} are taken")
    for character in value:
        if character != "\n" and character != "\t" and (ord(character) < 32 or 0xD800 <= ord(character) < 0xE000):
            raise UserError(f"{name} holds the character {ord(character):#x}, which is no text")
    return value


def _text(content: Mapping, name: str, longest: int) -> str:
    value = content.get(name)
    return "" if value is None else clean_text(value, name, longest)


def _number(content: Mapping, name: str, least: int, most: int) -> int | None:
    value = content.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name} must be a whole number from {least} to {most}")
    return value


def _flag(content: Mapping, name: str) -> bool:
    value = content.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{name} must be true or false")
    return bool(value)


def _settings(content: Any) -> dict[str, str]:
    if not isinstance(content, Mapping) or len(content) > MOST_SETTINGS:
        raise UserError(f"settings must be an object of at most {MOST_SETTINGS} names and values")
    found = {}
    for name, value in content.items():
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, int | float | list):
            value = str(value)
        found[clean_text(name, "a setting's name", 80)] = clean_text(value, f"setting '{name}'", LONGEST_VALUE)
    return found
