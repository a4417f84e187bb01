"""Tables of what a change of caption does, and of videos that begin with true frames."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from evaluation.compare.statistics import Estimate, estimate
from tinyworld.results import Found
from utils.files import atomic, write_json
from utils.table import markdown

NEVER = "no switch"  # the rule of a video whose caption stays
ANEW = "made anew"  # another video of A's caption, for the likeness of a place
SHOWN = {  # measure -> heading
    "blocks until ground": "blocks until ground",
    "blocks until time": "until time",
    "blocks until animal": "until animal",
    "new objects": "B's objects",
    "old objects": "A's objects",
    "seam": "seam",
    "ground and time are back": "A's ground and time back",
    "animal is back": "its animal",
    "place is back": "its place",
}
GIVEN = ("objects kept in view", "objects kept", "revisit consistency", "subject kept", "camera as trained")

Tables = dict[str, dict[str, dict[str, Estimate]]]  # table -> row -> measure -> mean over captions


def report(results: Mapping[str, Found], folder: Path) -> None:
    """Write switches.md and switches.json; print the tables.

    Args:
        results: method -> what the judge found.
    """
    tables = gather(results)
    parts = []
    for name, rows in tables.items():
        headings = {measure: measure for measure in GIVEN} if name == "given" else SHOWN
        parts.append(f"{name}:\n\n{table(rows, headings)}")
    text = "\n\n".join(parts)
    with atomic(folder / "switches.md") as temporary:
        temporary.write_text(text + "\n")
    plain: dict = {}
    for name, rows in tables.items():
        plain[name] = {}
        for row, measures in rows.items():
            plain[name][row] = {measure: asdict(found) for measure, found in measures.items()}
    write_json(folder / "switches.json", plain)
    print(f"\n{text}\n\nalso in {folder}/switches.md and switches.json")


def gather(results: Mapping[str, Found]) -> Tables:
    """Means over captions with bootstrap intervals: a table for each change, and one of what begins with the truth."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for method, found in results.items():
        for measures in found.values():
            for key, value in measures.items():
                if value is None:
                    continue
                name, row, measure = placed(key, method)
                rows = values.setdefault(name, {})
                rows.setdefault(row, {}).setdefault(measure, []).append(value)
    tables: Tables = {}
    for name, rows in values.items():
        tables[name] = {}
        for row, measures in rows.items():
            tables[name][row] = {measure: estimate(known) for measure, known in measures.items()}
    return tables


def placed(key: str, method: str) -> tuple[str, str, str]:
    """(table, row, measure) of a value's name."""
    *group, measure = key.split("/")
    if group[0] == ANEW:
        return ANEW, method, measure
    if len(group) == 1:
        return "given", f"{method}, {group[0]}", measure
    change, rule = group
    return change, f"{method}, {rule}", measure


def table(rows: Mapping[str, Mapping[str, Estimate]], headings: Mapping[str, str]) -> str:
    """A row for each method and rule, with the measures that any of them has."""
    shown = [measure for measure in headings if any(measure in row for row in rows.values())]
    lines = [["", *(headings[measure] for measure in shown)]]
    for name, row in rows.items():
        lines.append([name, *(f"{row[measure]:.2f}" if measure in row else "" for measure in shown)])
    return markdown(lines)
