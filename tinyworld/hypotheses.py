"""The hypotheses of a benchmark: named before it runs, tested together family by family, with their power."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evaluation.compare.statistics import ALPHA, POWER, Difference, compare, holm, least_effect, units_needed
from tinyworld.results import METRICS, Values
from utils.settings import Settings, setting
from utils.table import markdown


@dataclass(frozen=True, kw_only=True)
class Hypothesis(Settings):
    """That a row differs from a baseline in one measure."""

    baseline: str = setting("", "name of a row")
    row: str = setting("", "name of another row")
    metric: str = setting("revisit consistency", "what is measured", choices=tuple(METRICS))


@dataclass(frozen=True)
class Tested:
    """A hypothesis and what was found; `difference.p_holm` is corrected within the family."""

    family: str
    size: int
    hypothesis: Hypothesis
    difference: Difference

    @property
    def alpha(self) -> float:
        """The level of the family's strictest test, at which power is reckoned."""
        return ALPHA / self.size


def check_hypotheses(families: Mapping[str, Sequence[Hypothesis]], values: Values) -> list[Tested]:
    """Every hypothesis whose rows have been made, p-values corrected within its family."""
    tested = []
    for family, hypotheses in families.items():
        found: list[tuple[Hypothesis, Difference]] = []
        for hypothesis in hypotheses:
            before = values.get(hypothesis.baseline, {}).get(hypothesis.metric, {})
            after = values.get(hypothesis.row, {}).get(hypothesis.metric, {})
            difference = compare(before, after)
            if difference:
                found.append((hypothesis, difference))
        corrected = holm([difference.p for _, difference in found])
        for (hypothesis, difference), p in zip(found, corrected, strict=True):
            tested.append(Tested(family, len(found), hypothesis, replace(difference, p_holm=p)))
    return tested


def hypotheses_table(tested: Sequence[Tested]) -> str:
    """Markdown: a row for each hypothesis: the difference, its test, and what the number of captions can tell."""
    lines = [["hypothesis", "measure", "difference", "p", "p in family", "n", "effect seen by n", "n for this effect"]]
    families = dict.fromkeys(one.family for one in tested)
    for family in families:
        lines.append([f"*{family}*", *[""] * 7])
        for one in tested:
            if one.family == family:
                lines.append(_line(one))
    return markdown(lines)


def power_in_words(tested: Sequence[Tested]) -> str:
    """What the last two columns mean."""
    if not tested:
        return ""
    return (
        f"p in family: after Holm's correction within the family. The last two columns say what a test at "
        f"{ALPHA} / (tests of the family) sees with a power of {POWER}: the smallest difference "
        "that n captions show, in units of the measure, and how many captions a true difference of the size found "
        "would need."
    )


def _line(one: Tested) -> list[str]:
    found = one.difference
    cells = [f"{one.hypothesis.row} - {one.hypothesis.baseline}", one.hypothesis.metric, f"{found:+.3f}"]
    if found.p is None:
        return [*cells, "", "", str(found.n), "", ""]
    needed = units_needed(found.mean, found.deviation, one.alpha)
    smallest = least_effect(found.n, found.deviation, one.alpha)
    return [
        *cells,
        f"{found.p:.3f}",
        f"{found.p_holm:.3f}",
        str(found.n),
        f"{smallest:.3f}",
        "none" if needed is None else str(needed),
    ]
