"""What VBench-Long found: its result files, and the paper's table of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.compare.statistics import average_ranks
from evaluation.vbench.export import DIMENSIONS, read_json
from utils.errors import UserError
from utils.table import align

LONG_RANGE = DIMENSIONS[:2]  # fused from a score within clips and one between clips
ROUNDING = 1e-5  # VBench's cosine of a frame with an equal one, in float32, can be above 1
Scores = dict[str, float | None]  # dimension -> percent, None where it was not run


@dataclass(frozen=True)
class ClipScore:
    """A clip's score in one of the long-range dimensions, and the two it is fused from."""

    video: str  # the file that the clip was cut from
    within: float
    between: float  # among the first frames of the video's clips: the same for all of them
    fused: float


@dataclass(frozen=True)
class Result:
    """What VBench-Long found in one dimension.

    Attributes:
        score: of all videos, 0 to 1.
        listed: how many clips it lists.
        clips: those of them that have a long-range half.
    """

    score: float
    listed: int
    clips: list[ClipScore]


def read_scores(folder: Path) -> Scores:
    """Scores in percent from all `*_eval_results.json` in a folder (or one such file), newest first.

    A dimension that was not run is None, never 0.
    """
    scores: Scores = dict.fromkeys(DIMENSIONS)
    for path, results in read_results(folder):
        for dimension, result in results.items():
            if dimension not in scores:
                continue  # the paper has no such dimension
            if scores[dimension] is not None:
                continue  # from a newer file
            if not 0 <= result.score <= 1 + ROUNDING:
                raise UserError(f"{path}: {dimension} is {result.score}, not between 0 and 1; is it of another VBench?")
            scores[dimension] = min(100.0 * result.score, 100.0)
    return scores


def warnings(folder: Path) -> list[str]:
    """What is wrong with a result although VBench wrote it."""
    found = []
    for path, results in read_results(folder):
        for dimension in LONG_RANGE:
            if dimension in results and results[dimension].listed:
                fault = _fault(results[dimension])
                if fault:
                    found.append(f"{path.name}: {dimension} {fault}")
    return found


def _fault(result: Result) -> str:
    """What is wrong with a result of a long-range dimension; empty where nothing is."""
    if not result.clips:
        return "has no long-range half: no video is longer than a clip of 2 s"
    videos = {clip.video for clip in result.clips}
    lost = {clip.video for clip in result.clips if clip.between == 0}
    if lost:
        return f"found no long-range score of {len(lost)} of {len(videos)} videos"
    if all(clip.fused == clip.within for clip in result.clips):
        return "was run without --dev_flag, its long-range half counts 0"
    return ""


def table(scores: Mapping[str, Scores]) -> str:
    """The paper's table; average ranks are over the dimensions that every row has, and say how many those are."""
    ranks, used = average_ranks(scores, dict.fromkeys(DIMENSIONS, 1))
    heads = [name.replace("_", " ") for name in DIMENSIONS]
    rows = [["", *heads, "average rank"]]
    for method, row in scores.items():
        cells = []
        for name in DIMENSIONS:
            value = row.get(name)
            cells.append("-" if value is None else f"{value:.2f}")
        rank = "-"
        if used and len(scores) > 1:
            rank = f"{ranks[method]:.2f}"
            if len(used) < len(DIMENSIONS):
                rank += f" (of {len(used)})"
        rows.append([method, *cells, rank])
    return align(rows)


def read_results(folder: Path) -> list[tuple[Path, dict[str, Result]]]:
    """Result files of a folder (or one such file) with their content by dimension, newest first.

    Raises:
        UserError: a file is damaged; an older one in its place would be a wrong score.
    """
    files = [folder] if folder.is_file() else list(folder.rglob("*_eval_results.json"))
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    read = []
    for path in files:
        content = read_json(path)
        try:
            results = {dimension: parse_result(one) for dimension, one in content.items()}
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is broken; delete it and run VBench again") from error
        read.append((path, results))
    return read


def parse_result(content: Any) -> Result:
    """What VBench-Long writes of one dimension: `[score, [{...} of each clip]]`, and of some a third part."""
    details = content[1] if len(content) > 1 else []
    clips = []
    for clip in details:
        if "clip2clip_score" in clip:
            video = Path(clip["video_path"]).name  # SPLIT/VIDEO_000.mp4/VIDEO.mp4
            scores = (clip["inclip_score"], clip["clip2clip_score"], clip["video_results"])
            clips.append(ClipScore(video, *map(float, scores)))
    return Result(float(content[0]), len(details), clips)
