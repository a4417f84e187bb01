"""What a benchmark reports of what the judge found: means, paired differences and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from evaluation.statistics import Difference, Estimate, by_group, compare, estimate, holm
from utils.files import atomic, write_json

TRUTH = "true videos"
METRICS = {  # measure -> whether more is better (1) or less (-1)
    "revisit consistency": 1,
    "revisit error": -1,
    "came back": 1,
    "objects kept": 1,
    "objects in the first pass": 1,
    "colours in the first pass": 1,
    "subject kept": 1,
    "ground and time kept": 1,
    "motion plausible": 1,
    "camera as trained": 1,
    "drift": -1,
}
Unit = tuple[int, int]  # prompt, sample
Results = Mapping[str, Mapping[Unit, Mapping[str, float | None]]]  # row -> video -> measure -> value


@dataclass(frozen=True)
class Test:
    """One paired difference `row` - `baseline` in one measure."""

    question: str
    baseline: str
    row: str
    metric: str
    difference: Difference


def report(comparisons: Mapping[str, Sequence[str]], results: Results, folder: Path) -> None:
    """Write table.md, table.json and benchmark.png; print the tables."""
    values = {
        name: {metric: by_prompt(found, metric) for metric in METRICS if by_prompt(found, metric)}
        for name, found in results.items()
    }
    means = {name: {metric: estimate(v.values()) for metric, v in row.items()} for name, row in values.items()}
    tests = differences(comparisons, values)
    text = "\n\n".join([table(means), *comparison_tables(tests)])
    with atomic(folder / "table.md") as temporary:
        temporary.write_text(text + "\n")
    rows = {name: {metric: asdict(found) for metric, found in row.items()} for name, row in means.items()}
    write_json(folder / "table.json", {"rows": rows, "differences": [asdict(test) for test in tests]})
    draw(means, folder / "benchmark.png")
    print(f"{text}\n\nwritten to {folder}: table.md, table.json, benchmark.png", flush=True)


def by_prompt(found: Mapping[Unit, Mapping[str, float | None]], metric: str) -> dict[int, float]:
    """Prompt -> mean over its samples, those left out that have no value."""
    return by_group({unit: row[metric] for unit, row in found.items() if row.get(metric) is not None})


def differences(
    comparisons: Mapping[str, Sequence[str]], values: Mapping[str, Mapping[str, dict[int, float]]]
) -> list[Test]:
    """Every comparison's paired differences over prompts, p-values corrected for all that are reported."""
    tests = []
    for question, (baseline, *rows) in comparisons.items():
        for row in rows:
            for metric in METRICS:
                pair = [values.get(name, {}).get(metric, {}) for name in (baseline, row)]
                if found := compare(*pair):
                    tests.append(Test(question, baseline, row, metric, found))
    corrected = holm([test.difference.p for test in tests])
    return [
        replace(test, difference=replace(test.difference, p_holm=p)) for test, p in zip(tests, corrected, strict=True)
    ]


def table(means: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Markdown: a row for each way to generate, means with 95% intervals over prompts."""
    lines = [_line(["", *METRICS]), "|---" * (1 + len(METRICS)) + "|"]
    for name, row in means.items():
        lines.append(_line([name, *(f"{row[metric]:.2f}" if metric in row else "" for metric in METRICS)]))
    return "\n".join(lines)


def comparison_tables(tests: Sequence[Test]) -> list[str]:
    """Markdown: a table for each question; * marks p < 0.05 after Holm's correction over all tables."""
    tables = []
    for question in dict.fromkeys(test.question for test in tests):
        some = [test for test in tests if test.question == question]
        lines = [f"{question[0].upper()}{question[1:]}:", "", _line(["", *METRICS]), "|---" * (1 + len(METRICS)) + "|"]
        for row in dict.fromkeys(test.row for test in some):
            found = {test.metric: test.difference for test in some if test.row == row}
            cells = [_difference(found.get(metric)) for metric in METRICS]
            lines.append(_line([f"{row} - {some[0].baseline}", *cells]))
        tables.append("\n".join(lines))
    return tables


def draw(means: Mapping[str, Mapping[str, Estimate]], path: Path) -> None:
    """Means and intervals, a panel for each measure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names, across = list(means)[::-1], 3
    size = 3.4 * across, -(-len(METRICS) // across) * (0.7 + 0.25 * len(names))
    figure, panels = plt.subplots(-(-len(METRICS) // across), across, figsize=size, sharey=True, layout="constrained")
    for spare in panels.flat[len(METRICS) :]:
        spare.remove()
    for axes, (metric, better) in zip(panels.flat[: len(METRICS)], METRICS.items(), strict=True):
        for y, name in enumerate(names):
            if found := means[name].get(metric):
                low, high = (found.mean if end is None else end for end in (found.low, found.high))
                axes.plot([low, high], [y, y], color="0.5", linewidth=2)
                axes.plot(found.mean, y, "o", color="C1" if name == TRUTH else "C0", markersize=5)
        axes.set_title(f"{metric} ({'more' if better > 0 else 'less'} is better)", fontsize=9)
        axes.set_xlim(left=min(axes.get_xlim()[0], 0))
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x", color="0.9")
        axes.tick_params(labelsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{found:+.2f}" + (" *" if found.p_holm is not None and found.p_holm < 0.05 else "")
