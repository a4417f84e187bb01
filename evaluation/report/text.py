"""The comparison in words: tables for a terminal, and the numbers' spelling."""

from evaluation.compare.evaluate import Evaluation
from evaluation.compare.statistics import Difference, Estimate
from evaluation.video.measure import Metric
from utils.table import align


def mean_text(mean: Estimate, digits: int) -> str:
    """A mean, as text."""
    return f"{mean.mean:.{digits}f}"


def interval_text(found: Estimate, digits: int) -> str:
    """The interval of a mean, as text; empty where there is none."""
    if found.low is None:
        return ""
    return f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"


def signed_interval_text(found: Difference, digits: int) -> str:
    """The interval of a difference, as text; empty where there is none."""
    if found.low is None:
        return ""
    return f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def p_text(p: float | None) -> str:
    """A p-value, as text."""
    if p is None:
        return ""
    if p < 0.001:
        return f"{p:.0e}"
    return f"{p:.3f}"


def verdict(found: Difference, metric: Metric) -> str:
    """ "better" or "worse" where p is below 0.05 and the interval leaves out zero."""
    if metric.better == 0 or found.p is None or found.p >= 0.05:
        return ""
    if found.low <= 0 <= found.high:
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
        lines = [heading(found)]
        for problem in found.problems:
            lines.append(f"  {problem.place}: {problem.why}")
        parts.append("\n".join(lines))
    if found.means:
        parts.append(means_table(found))
        parts += [f"note: {note}" for note in found.notes]
    else:
        parts.append("no video can be compared")
    for a, b in found.differences:
        parts.append(difference_table(found, a, b))
    return "\n\n".join(parts)


def means_table(found: Evaluation) -> str:
    """Methods' means over the compared videos, with intervals and average ranks."""
    names = [method.name for method in found.methods]
    rows = [[f"{len(found.compared)} compared", *names]]
    for name, metric in found.metrics.items():
        row = [_label(metric)]
        for method in names:
            mean = found.means[method][name]
            text = f"{mean_text(mean, metric.digits)} {interval_text(mean, metric.digits)}"
            row.append(text.strip())
        rows.append(row)
    if found.ranks:
        ranks = [f"{found.ranks[method]:.2f}" for method in names]
        rows.append(["average rank", *ranks])
    return align(rows)


def difference_table(found: Evaluation, a: str, b: str) -> str:
    """Paired differences b - a, with intervals and p-values."""
    rows = [[f"{b} - {a}", "difference", "95% interval", "p", ""]]
    for name, difference in found.differences[a, b].items():
        metric = found.metrics[name]
        rows.append(
            [
                metric.label,
                f"{difference.mean:+.{metric.digits}f}",
                signed_interval_text(difference, metric.digits),
                p_text(difference.p),
                verdict(difference, metric),
            ]
        )
    return align(rows)


def _label(metric: Metric) -> str:
    """A metric's name and unit; parts of another metric are indented."""
    label = metric.label
    if not metric.ranked:
        label = f"  {label}"
    if metric.better > 0:
        label += " (up)"
    if metric.unit:
        label += f", {metric.unit}"
    return label
