"""What papers have published of VBench-Long, and where they contradict each other.

`published.json` has their tables with the source of each. Methods have the names by which this project runs them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.compare.statistics import average_ranks
from evaluation.vbench.export import DIMENSIONS
from evaluation.vbench.results import Scores
from utils.errors import UserError, did_you_mean
from utils.table import align

FILE = Path(__file__).parent / "published.json"
BASE = "native"  # what a method's change is against
COLUMNS = (*DIMENSIONS, "overall")  # a paper's own sum of more dimensions than these, where it gives one
HEADS = ("subject", "background", "smoothness", "dynamic", "aesthetic", "imaging", "overall")
OPPOSITE = 0.25  # points that changes of opposite sign must have, both, to contradict each other
APART = 5.0  # points by which scores of the same method must differ to contradict each other

Rows = dict[tuple[str, str], Scores]  # (method, who measured it) -> dimension -> percent, or points


@dataclass(frozen=True)
class Paper:
    """A paper's table for one length of videos."""

    name: str
    source: str
    prompts: str
    seconds: int
    rows: dict[str, dict[str, Scores]]  # backbone -> method -> dimension -> percent

    def describe(self) -> str:
        """What a reader needs to find the figures, in a line."""
        prompts = f"; prompts: {self.prompts}" if self.prompts else ""
        return f"{self.name}: {self.source}{prompts}"


def read_papers() -> list[Paper]:
    """All published tables."""
    content = json.loads(FILE.read_text())
    papers = []
    for paper in content["papers"]:
        rows = {}
        for backbone, methods in paper["rows"].items():
            rows[backbone] = {}
            for method, values in methods.items():
                rows[backbone][method] = dict(zip(content["dimensions"], values, strict=True))
        papers.append(Paper(paper["name"], paper["source"], paper["prompts"], paper["seconds"], rows))
    return papers


def papers_of(seconds: int, backbone: str) -> dict[str, list[Paper]]:
    """Tables of a length by backbone: of the one that is named, or of all.

    Raises:
        UserError: nothing is published of that length or backbone.
    """
    papers = read_papers()
    lengths = sorted({paper.seconds for paper in papers})
    if seconds not in lengths:
        raise UserError(f"--seconds {seconds} has no published numbers; give one of {', '.join(map(str, lengths))}")
    found: dict[str, list[Paper]] = {}
    for paper in papers:
        for name in paper.rows:
            found.setdefault(name, [])
            if paper.seconds == seconds:
                found[name].append(paper)
    if backbone and backbone not in found:
        raise UserError(f"--backbone {backbone} is not one of {', '.join(found)}{did_you_mean(backbone, list(found))}")
    if backbone:
        return {backbone: found[backbone]}
    return found


def published_table(papers: Sequence[Paper], backbone: str) -> str:
    """The papers' rows of one backbone, `!` where papers differ much about the same method.

    Average ranks are within a paper, over what all its rows have.
    """
    scores = {}
    ranked = {}
    for paper in papers:
        methods = paper.rows[backbone]
        ranks, used = average_ranks(methods, dict.fromkeys(DIMENSIONS, 1))
        for method, row in methods.items():
            scores[method, paper.name] = row
            rank = "-"
            if used and len(methods) > 1:
                rank = f"{ranks[method]:.2f}"
                if len(used) < len(DIMENSIONS):
                    rank += f" (of {len(used)})"
            ranked[method, paper.name] = rank
    rows = [["", "", *HEADS, "rank"]]
    for (key, rank), cells in zip(ranked.items(), _cells(scores, "{:.2f}", _far_apart), strict=True):
        rows.append([*key, *cells, rank])
    return align(rows)


def changes(papers: Sequence[Paper], backbone: str, own: Mapping[str, Scores]) -> Rows:
    """What each method changes against `native`, by each paper that has both and by one's own results.

    Own rows are named METHOD or BACKBONE_METHOD.
    """
    tables = {paper.name: paper.rows[backbone] for paper in papers}
    tables["yours"] = {name.removeprefix(f"{backbone}_"): scores for name, scores in own.items()}
    found: Rows = {}
    for who, methods in tables.items():
        if BASE not in methods:
            continue
        for method, scores in methods.items():
            if method != BASE:
                found[method, who] = _difference(scores, methods[BASE])
    return dict(sorted(found.items()))


def contradictions(found: Rows, contradict: Callable[[list[float]], bool]) -> set[tuple[str, str]]:
    """Methods and dimensions of which those who measured them say what contradicts each other."""
    contradicted = set()
    for method, _ in found:
        for dimension in COLUMNS:
            values = []
            for (name, _), scores in found.items():
                if name == method and scores.get(dimension) is not None:
                    values.append(scores[dimension])
            if values and contradict(values):
                contradicted.add((method, dimension))
    return contradicted


def changes_table(found: Rows) -> str:
    """Changes as a table, `!` where others found the opposite."""
    rows = [["", "", *HEADS]]
    for key, cells in zip(found, _cells(found, "{:+.2f}", opposite), strict=True):
        rows.append([*key, *cells])
    return align(rows)


def opposite(values: list[float]) -> bool:
    """Whether some found a gain and others a loss."""
    return min(values) <= -OPPOSITE and max(values) >= OPPOSITE


def _far_apart(values: list[float]) -> bool:
    return max(values) - min(values) >= APART


def _difference(scores: Scores, base: Scores) -> Scores:
    """Points by which a row is above another, None where one of them lacks the dimension."""
    differences: Scores = {}
    for dimension in COLUMNS:
        value = scores.get(dimension)
        other = base.get(dimension)
        differences[dimension] = None if value is None or other is None else value - other
    return differences


def _cells(found: Rows, form: str, contradict: Callable[[list[float]], bool]) -> list[list[str]]:
    """The numbers of each row as text, marked where they contradict another's."""
    contradicted = contradictions(found, contradict)
    cells = []
    for (method, _), scores in found.items():
        row = []
        for dimension in COLUMNS:
            value = scores.get(dimension)
            text = "-" if value is None else form.format(value)
            mark = "!" if value is not None and (method, dimension) in contradicted else " "
            row.append(f"{text} {mark}")
        cells.append(row)
    return cells
