"""What the judge found, a file for each video, kept so that a stopped benchmark goes on where it was.

A result carries the digest of all that it depends on, so it is known by itself whether it belongs to a run.
`row.json` beside the results says the same in words; it tells what has changed, and may be lost.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyworld.results import Unit
from utils.errors import UserError
from utils.files import write_json

MADE_OF = "made of"  # the digest's name in a result's file


class Store:
    """One row's results, all of the same weights, settings and code. Nothing is written before the first result.

    Args:
        folder: of the row.
        about: all that a result depends on, as plain data.

    Raises:
        UserError: the folder holds results of others.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about = json.loads(json.dumps(about))
        self.made_of = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        self.results: dict[Unit, dict[str, float | None]] = {}
        for path in sorted(folder.glob("[0-9]*-[0-9]*.json")):
            result = _read(path)
            if result is None:
                print(f"note: {path} is damaged; its video is judged again", flush=True)
            elif result.pop(MADE_OF, None) != self.made_of:
                self._refuse()
            else:
                prompt, sample = path.stem.split("-")
                self.results[int(prompt), int(sample)] = result

    def path(self, unit: Unit) -> Path:
        """The file of a video's result."""
        prompt, sample = unit
        return self.folder / f"{prompt:05d}-{sample}.json"

    def has(self, unit: Unit) -> bool:
        """Whether there is a result of a video, by now and by any process."""
        if unit in self.results:
            return True
        result = _read(self.path(unit))
        return result is not None and result.get(MADE_OF) == self.made_of

    def write(self, unit: Unit, result: Mapping[str, float | None]) -> None:
        """Keep a video's result."""
        about = self.folder / "row.json"
        if _read(about) != self.about:
            write_json(about, self.about)
        write_json(self.path(unit), {MADE_OF: self.made_of, **result})
        self.results[unit] = dict(result)

    def read(self, units: Sequence[Unit]) -> dict[Unit, dict[str, float | None]]:
        """What is there of the units, by now and by any process."""
        found = Store(self.folder, self.about).results
        return {unit: found[unit] for unit in units if unit in found}

    def _refuse(self) -> None:
        kept = _read(self.folder / "row.json")
        changed = "its row.json, which would tell which, cannot be read"
        if kept is not None:
            names = sorted(name for name in {*kept, *self.about} if kept.get(name) != self.about.get(name))
            changed = ", ".join(names)
        raise UserError(
            f"{self.folder} holds results of other weights, settings or code ({changed}); "
            "delete that folder, or keep it and name another with folder=..."
        )


def _read(path: Path) -> dict[str, Any] | None:
    """A file's content; None where it is absent or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
