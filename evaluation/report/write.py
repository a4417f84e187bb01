"""From folders of videos to a report: measured, compared, written."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.compare.evaluate import Measured, evaluate, measure_all
from evaluation.compare.pairing import Problem, find
from evaluation.report.html import build
from evaluation.report.text import describe
from evaluation.video.reader import require_ffmpeg
from utils.errors import UserError
from utils.files import atomic, gone_if_empty, require_writable, write_json


def report(videos: Sequence[str], folder: Path, workers: int, seed: int = 0, embed: bool = False) -> None:
    """Measure and compare; write report.html and report.json, and print the tables.

    Args:
        videos: `[NAME=]FOLDER` of each method, or `[NAME=]FILE`.
        workers: videos at a time.
        seed: of the intervals and tests.
        embed: put the videos into report.html instead of linking them.

    Raises:
        UserError: no videos, or none that can be read.
    """
    methods, problems = find(videos)
    require_ffmpeg()
    with gone_if_empty(folder):
        out = require_writable(folder)
        measured, unreadable = measure_all(methods, workers, print_line)
        require_some(measured, unreadable)
    result = evaluate(methods, measured, problems + unreadable, seed)
    write_json(out / "report.json", result.to_json())
    with atomic(out / "report.html") as file:
        file.write_text(build(result, out, embed), encoding="utf-8", errors="backslashreplace")
    print(f"\n{describe(result)}\n\nalso in {out}/report.html and report.json")


def require_some(measured: Measured, unreadable: list[Problem]) -> None:
    """Refuse videos of which none can be read."""
    if not any(measured.values()):
        first = unreadable[0]
        raise UserError(f"none of {len(unreadable)} videos can be read; {first.place} {first.why}")


def print_line(line: str) -> None:
    print(line, flush=True)
