"""The comparison in words: tables for a terminal, and the numbers' spelling."""

from collections.abc import Sequence

from evaluation.evaluate import Evaluation
from evaluation.measure import Metric
from evaluation.statistics import Difference, Estimate


def cell(mean: Estimate, digits: int) -> tuple[str, str]:
    """A mean and its interval, as text."""
    interval = "" if mean.low is None else f"[{mean.low:.{digits}f}, {mean.high:.{digits}f}]"
    return f"{mean.mean:.{digits}f}", interval


def difference_cell(found: Difference, digits: int) -> tuple[str, str, str]:
    """A difference, its interval and its p-value, as text."""
    interval = "" if found.low is None else f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    p = "" if found.p is None else f"{found.p:.3f}" if found.p >= 0.001 else f"{found.p:.0e}"
    return f"{found.mean:+.{digits}f}", interval, p


def gained(found: Difference, metric: Metric) -> str:
    """ "better" or "worse" where p is below 0.05 and the interval leaves out zero."""
    if metric.better == 0 or found.p is None or found.p >= 0.05 or found.low <= 0 <= found.high:
        return ""
    return "better" if found.mean * metric.better > 0 else "worse"


def heading(found: Evaluation) -> str:
    """How many problems there are."""
    count = len(found.problems)
    return f"{count} problem{'s' * (count != 1)}; the rest is evaluated:"


def describe(found: Evaluation) -> str:
    """Everything worth a line on the terminal."""
    parts = []
    if found.problems:
        parts.append("\n".join([heading(found), *(f"  {p.place}: {p.why}" for p in found.problems)]))
    parts += found.notes
    if found.means:
        parts += [means_table(found), *(_difference_table(found, a, b) for a, b in found.differences)]
    else:
        parts.append("no video can be compared")
    return "\n\n".join(parts)


def means_table(found: Evaluation) -> str:
    """Methods' means over the compared videos, with intervals and average ranks."""
    names = [method.name for method in found.methods]
    lines = [[f"{len(found.compared)} compared", *names]]
    for name, metric in found.metrics.items():
        label = f"{'' if metric.ranked else '  '}{metric.label}{' (up)' if metric.better > 0 else ''}"
        unit = f", {metric.unit}" if metric.unit else ""
        lines.append([label + unit, *(" ".join(cell(found.means[m][name], metric.digits)).strip() for m in names)])
    if found.ranks:
        lines.append(["average rank", *(f"{found.ranks[m]:.2f}" for m in names)])
    return align(lines)


def _difference_table(found: Evaluation, a: str, b: str) -> str:
    lines = [[f"{b} - {a}", "difference", "95% interval", "p", ""]]
    for name, difference in found.differences[a, b].items():
        metric = found.metrics[name]
        lines.append([metric.label, *difference_cell(difference, metric.digits), gained(difference, metric)])
    return align(lines)


def align(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right, a rule below the first line."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([shown[0].rstrip(), "-" * len(shown[0]), *(line.rstrip() for line in shown[1:])])
