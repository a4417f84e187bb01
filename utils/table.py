"""Rows of text as a table: columns for a terminal, or Markdown."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]  # the first row is the heading; all rows have the same number of cells


def align(rows: Rows) -> str:
    """Columns for a terminal: the first one to the left, the others to the right, a rule below the heading."""
    widths = _widths(rows)
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        for text, width in zip(row[1:], widths[1:], strict=True):
            cells.append(text.rjust(width))
        lines.append("  ".join(cells).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines.insert(1, rule)
    return "\n".join(lines)


def markdown(rows: Rows) -> str:
    """A Markdown table; a `|` within a cell is escaped."""
    lines = []
    for row in rows:
        cells = [text.replace("|", "\\|") for text in row]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|" + "---|" * len(rows[0])
    lines.insert(1, rule)
    return "\n".join(lines)


def _widths(rows: Rows) -> list[int]:
    """Characters of the longest cell of each column."""
    widths = []
    for column in zip(*rows, strict=True):
        widths.append(max(map(len, column)))
    return widths
