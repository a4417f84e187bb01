"""Prompts from a file or a setting: which lines count, how they are numbered, and how their files are named."""

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import require_file

JSONL = (".jsonl", ".ndjson")
OTHER = (".csv", ".tsv", ".tab", ".json", ".yaml", ".yml", ".xls", ".xlsx", ".ods", ".parquet", ".md", ".html")
FORMS = "write one prompt a line, or JSONL with a field 'prompt'"
# A table's first line: two words or more with separators and without spaces, one of which is "prompt".
TABLE = re.compile(r'(?=.*\bprompts?\b)"?[\w-]+"?([,;\t|]"?[\w-]+"?)+', re.IGNORECASE)
MARK = "\ufeff"  # byte order mark
NAME_CHARACTERS = 100
NAME_BYTES = 195  # of the 255 that file systems allow, less number, sample, suffixes and marks of unfinished files


@dataclass(frozen=True)
class Prompt:
    """A prompt and its number.

    Attributes:
        index: the line of its file, counted from 0, blank lines included.
        fields: the other fields of its line in a JSONL file.
    """

    index: int
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


def load_prompts(prompt: str | None, path: str | Path, limit: int = -1) -> list[Prompt]:
    """The setting `prompt` as the only one, or those of a file; see `read_prompts`.

    Raises:
        UserError: the prompt is empty, or the file is refused.
    """
    if prompt is None:
        return read_prompts(path, limit)
    if not prompt.strip():
        raise UserError("prompt is empty; describe a video, or leave the setting out to use the prompts of data_path")
    return [Prompt(0, prompt)]


def read_prompts(path: str | Path, limit: int = -1) -> list[Prompt]:
    """The prompts of a text file, one a line, or of a JSONL file; at most `limit` of them, all with -1.

    Blank lines are no prompts but count, so that a prompt's number is that of its line.

    Raises:
        UserError: no such file, not UTF-8 text, a table, a line of JSONL without a prompt, or no prompts.
    """
    path = require_file(path, "prompt file data_path", 'correct the path, or give one prompt with prompt="..."')
    if path.suffix.lower() in OTHER:
        raise UserError(f"prompt file data_path {path} is no plain text; {FORMS}")
    lines = _lines(path)
    filled = [line for line in lines if line]
    if not filled:
        raise UserError(f"prompt file data_path {path} holds no prompts; write one a line")
    if TABLE.fullmatch(filled[0]):
        raise UserError(f"prompt file data_path {path} is a table with the columns '{filled[0]}'; {FORMS}")
    is_jsonl = path.suffix.lower() in JSONL or _is_object(filled[0])
    prompts = []
    for index, line in enumerate(lines):
        if len(prompts) == limit:
            break
        if line:
            prompts.append(_from_json(path, index, line) if is_jsonl else Prompt(index, line))
    return prompts


def _lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file, without white space at their ends; only \n and \r\n end a line."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"prompt file data_path {path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"prompt file data_path {path} cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise UserError(f"prompt file data_path {path} is UTF-16 or no text; save it as UTF-8")
    return [line.strip().strip(MARK).strip() for line in text.split("\n")]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _from_json(path: Path, index: int, line: str) -> Prompt:
    """A prompt from a line of JSONL."""
    place = f"prompt file data_path {path}, line {index + 1}"  # as editors count
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not valid JSON; correct the line") from error
    text = fields.pop("prompt", None) if isinstance(fields, dict) else None
    if text is None and isinstance(fields, dict):
        text = _joined(fields)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"""{place} has no prompt; each line is an object like {{"prompt": "a lighthouse"}}""")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: the prompt holds half of a character (a lone surrogate); correct it") from error
    return Prompt(index, text.strip(), fields)


def _joined(fields: Mapping[str, Any]) -> str | None:
    """One text for a line that holds a list of prompts."""
    listed = fields.get("prompts", fields.get("prompts_list"))
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        return None
    return " | ".join(listed)


def sample_prompts(prompts: Sequence[Prompt], ratio: float, seed: int) -> list[Prompt]:
    """A share of the prompts (at least one), drawn by `seed`, in their order."""
    count = max(round(ratio * len(prompts)), 1)
    return [prompts[i] for i in sorted(random.Random(seed).sample(range(len(prompts)), count))]


def file_names(prompts: Sequence[Prompt], with_index: bool) -> dict[int, str]:
    """Prompt number -> file name without sample and suffix: the number, or the prompt's own text.

    Texts are cut to 100 characters and 195 bytes. The number is added where the cut makes two of them equal,
    leaves nothing, or leaves what looks like such a number.
    """
    if with_index:
        return {prompt.index: f"{prompt.index:05d}" for prompt in prompts}
    texts = {prompt.index: _name(prompt.text) for prompt in prompts}
    count = Counter(texts.values())
    names = {}
    for index, text in texts.items():
        is_clear = text and count[text] == 1 and not re.search(r"-\d{5,}$", text)
        names[index] = text if is_clear else f"{text}-{index:05d}"
    return names


def _name(text: str) -> str:
    name = re.sub(r"[^\w ,.'-]", "_", text)[:NAME_CHARACTERS]
    return name.encode()[:NAME_BYTES].decode(errors="ignore").strip(" .")
