"""What a benchmark reports of what the judge found: means, paired differences and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from evaluation.compare.statistics import Difference, by_group, compare, estimate, holm
from tinyworld.hypotheses import Hypothesis, check_hypotheses, hypotheses_table, power_in_words
from tinyworld.results import DIRECTIONS, METRICS, TRUTH, Found, Means, Values
from utils.figure import new_figure, save, tick_label
from utils.files import atomic, write_json
from utils.table import markdown

SIGNIFICANT = 0.05
PANELS_ACROSS = 3


@dataclass(frozen=True)
class Test:
    """One paired difference `row` - `baseline` in one measure."""

    question: str
    baseline: str
    row: str
    metric: str
    difference: Difference


def report(
    comparisons: Mapping[str, Sequence[str]],
    results: Mapping[str, Found],
    folder: Path,
    families: Mapping[str, Sequence[Hypothesis]],
) -> None:
    """Write table.md, table.json and benchmark.png; print the tables.

    Args:
        comparisons: question -> [baseline, rows that are compared with it].
        families: name -> hypotheses that are tested together.
        results: row -> what the judge found in its videos.
    """
    values = {name: by_prompt(found) for name, found in results.items()}
    means = {}
    for name, row in values.items():
        means[name] = {metric: estimate(prompts.values()) for metric, prompts in row.items()}
    tests = differences(comparisons, values)
    tested = check_hypotheses(families, values)
    parts = [means_table(means), *comparison_tables(tests)]
    if tested:
        parts[1:1] = [hypotheses_table(tested), power_in_words(tested)]
    text = "\n\n".join(parts)
    with atomic(folder / "table.md") as temporary:
        temporary.write_text(text + "\n")
    plain = {}
    for name, row in means.items():
        plain[name] = {metric: asdict(found) for metric, found in row.items()}
    content = {"rows": plain, "differences": [asdict(test) for test in tests]}
    content["hypotheses"] = [asdict(one) for one in tested]
    write_json(folder / "table.json", content)
    draw(means, folder / "benchmark.png")
    print(f"{text}\n\nwritten to {folder}: table.md, table.json, benchmark.png", flush=True)


def by_prompt(found: Found) -> dict[str, dict[int, float]]:
    """Measure -> prompt -> mean over its samples; what has no value is left out."""
    values = {}
    for metric in METRICS:
        measured = {unit: row[metric] for unit, row in found.items() if row.get(metric) is not None}
        if measured:
            values[metric] = by_group(measured)
    return values


def differences(comparisons: Mapping[str, Sequence[str]], values: Values) -> list[Test]:
    """Every comparison's paired differences over prompts, p-values corrected for all that are reported."""
    tests = []
    for question, (baseline, *rows) in comparisons.items():
        for row in rows:
            for metric in METRICS:
                before = values.get(baseline, {}).get(metric, {})
                after = values.get(row, {}).get(metric, {})
                difference = compare(before, after)
                if difference:
                    tests.append(Test(question, baseline, row, metric, difference))
    corrected = []
    for test, p in zip(tests, holm([test.difference.p for test in tests]), strict=True):
        corrected.append(replace(test, difference=replace(test.difference, p_holm=p)))
    return corrected


def means_table(means: Means) -> str:
    """Markdown: a row for each way to generate, means with 95% intervals over prompts."""
    rows = [["", *METRICS]]
    for name, row in means.items():
        cells = [name]
        for metric in METRICS:
            cells.append(f"{row[metric]:.2f}" if metric in row else "")
        rows.append(cells)
    return markdown(rows)


def comparison_tables(tests: Sequence[Test]) -> list[str]:
    """Markdown: a table for each question; * marks p < 0.05 after Holm's correction over all tables."""
    rows_of: dict[str, dict[str, dict[str, Difference]]] = {}  # question -> name of a row -> measure -> difference
    for test in tests:
        rows = rows_of.setdefault(test.question, {})
        rows.setdefault(f"{test.row} - {test.baseline}", {})[test.metric] = test.difference
    tables = []
    for question, rows in rows_of.items():
        lines = [["", *METRICS]]
        for name, found in rows.items():
            lines.append([name, *(_cell(found.get(metric)) for metric in METRICS)])
        tables.append(f"{question[0].upper()}{question[1:]}:\n\n{markdown(lines)}")
    return tables


def draw(means: Means, path: Path) -> None:
    """Means and intervals, a panel for each measure."""
    names = list(means)[::-1]
    down = -(-len(METRICS) // PANELS_ACROSS)
    figure = new_figure(3.4 * PANELS_ACROSS, down * (0.7 + 0.25 * len(names)))
    panels = figure.subplots(down, PANELS_ACROSS, sharey=True).flat
    for spare in panels[len(METRICS) :]:
        spare.remove()
    for axes, (metric, better) in zip(panels[: len(METRICS)], METRICS.items(), strict=True):
        for y, name in enumerate(names):
            found = means[name].get(metric)
            if found is None:
                continue
            if found.low is not None:
                axes.plot([found.low, found.high], [y, y], color="0.5", linewidth=2)
            axes.plot(found.mean, y, "o", color="C1" if name == TRUTH else "C0", markersize=5)
        axes.set_title(f"{metric} ({DIRECTIONS[better]})", fontsize=9)
        axes.set_xlim(left=min(axes.get_xlim()[0], 0))
        axes.set_yticks(range(len(names)), [tick_label(name) for name in names])
        axes.grid(axis="x", color="0.9")
        axes.tick_params(labelsize=8)
    save(figure, path)


def _cell(found: Difference | None) -> str:
    if found is None:
        return ""
    significant = found.p_holm is not None and found.p_holm < SIGNIFICANT
    return f"{found:+.2f}{' *' if significant else ''}"
