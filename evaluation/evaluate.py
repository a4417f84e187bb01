"""Measure every video of every method, and compare the methods."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

from evaluation.match import Key, Method, Problem, record_of, unpaired
from evaluation.measure import CONSISTENCY, METRICS, Measurement, Metric, measure
from evaluation.reader import BadVideo
from evaluation.retrieved import rows
from evaluation.statistics import Difference, Estimate, average_ranks, by_group, compare, estimate, holm

LENGTHS = 0.05  # videos whose lengths differ by more than this share are not compared


@dataclass
class Evaluation:
    """Everything a report shows.

    Attributes:
        measured: method -> key -> measurement.
        compared: keys that every method has in comparable length; statistics are over these.
        means: method -> metric -> estimate.
        differences: (method a, method b) -> metric -> difference b - a.
        ranks: method -> average rank over `ranked`.
        notes: what was left out on purpose, for instance for want of weights.
    """

    methods: list[Method]
    metrics: dict[str, Metric]
    measured: dict[str, dict[Key, Measurement]]
    problems: list[Problem]
    compared: list[Key] = field(default_factory=list)
    means: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    differences: dict[tuple[str, str], dict[str, Difference]] = field(default_factory=dict)
    ranks: dict[str, float] = field(default_factory=dict)
    ranked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        """Plain data: what report.json holds."""
        return {
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            "methods": {
                method.name: {
                    "folder": str(method.path),
                    "average_rank": self.ranks.get(method.name),
                    "means": {name: asdict(mean) for name, mean in self.means.get(method.name, {}).items()},
                    "videos": [
                        {"file": str(method.videos[key]), "prompt": key[0], "sample": key[1]} | found.to_json()
                        for key, found in self.measured[method.name].items()
                    ],
                }
                for method in self.methods
            },
            "compared": [{"prompt": prompt, "sample": sample} for prompt, sample in self.compared],
            "ranked": self.ranked,
            "differences": [
                {"from": a, "to": b, "metrics": {name: asdict(found) for name, found in table.items()}}
                for (a, b), table in self.differences.items()
            ],
            "problems": [asdict(problem) for problem in self.problems],
            "notes": self.notes,
        }


def measure_all(
    methods: Sequence[Method], workers: int, say: Callable[[str], None]
) -> tuple[dict[str, dict[Key, Measurement]], list[Problem]]:
    """Measure every video in `workers` processes; what cannot be read becomes a problem."""
    jobs = [(method.name, key, path) for method in methods for key, path in method.videos.items()]
    measured: dict[str, dict[Key, Measurement]] = {method.name: {} for method in methods}
    problems = []
    for done, ((name, key, path), result) in enumerate(_results(jobs, workers), 1):
        if isinstance(result, str):
            problems.append(Problem(str(path), result))
            say(f"{done}/{len(jobs)} {name}/{path.name}: {result}")
        else:
            measured[name][key] = result
            say(f"{done}/{len(jobs)} {name}/{path.name}: {brief(result)}")
    return {name: dict(sorted(found.items())) for name, found in measured.items()}, sorted(
        problems, key=lambda problem: problem.place
    )


def _results(jobs: Sequence[tuple[str, Key, Path]], workers: int) -> Iterator[tuple[tuple, Measurement | str]]:
    if workers == 1 or len(jobs) == 1:
        yield from ((job, measure_one(job[2])) for job in jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(measure_one, job[2]): job for job in jobs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def measure_one(path: Path) -> Measurement | str:
    """Measure a video with thumbnails of what its run retrieved, or say what is wrong with it."""
    wanted = {frame for row in rows(record_of(path)) for frame in (row.query, *row.retrieved)}
    try:
        return measure(path, wanted)
    except BadVideo as error:
        return str(error)


def brief(found: Measurement) -> str:
    """One line on one video."""
    line = f"{found.seconds:.1f} s, drift {found.scores['drift']:.2f}"
    seams = [f"{seam.frame}->{seam.frame + 1}" for seam in found.seams if seam.kind == "seam"]
    if seams:
        line += f", seam at frame {', '.join(seams[:4])}{', ...' if len(seams) > 4 else ''}"
    return line + (f", {found.cuts} cut{'s' * (found.cuts > 1)}" if found.cuts else "")


def evaluate(
    methods: Sequence[Method],
    measured: Mapping[str, Mapping[Key, Measurement]],
    problems: Sequence[Problem],
    extra: Mapping[str, Metric] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare methods over the videos that all of them have.

    Args:
        extra: metrics beyond `METRICS` that the measurements hold.
    """
    kept = [method for method in methods if measured[method.name]]
    present = [Method(m.name, m.path, {key: m.videos[key] for key in measured[m.name]}) for m in kept]
    metrics = METRICS | {name: metric for name, metric in CONSISTENCY.items() if name in (extra or {})}
    result = Evaluation(kept, metrics, {m.name: dict(measured[m.name]) for m in kept}, list(problems))
    if not kept:
        return result
    result.problems += unpaired(present)
    shared = [key for key in present[0].videos if all(key in method.videos for method in present)]
    for key in shared:
        difference = differing(key, {m.name: measured[m.name][key] for m in kept})
        result.problems += difference
        if not any("lengths" in problem.why for problem in difference):
            result.compared.append(key)
    if not result.compared:
        return result
    values = {m.name: {name: _units(measured[m.name], result.compared, name) for name in metrics} for m in kept}
    result.means = {
        method: {name: estimate(units.values(), seed) for name, units in table.items()}
        for method, table in values.items()
    }
    pairs = [(a.name, b.name) for i, a in enumerate(kept) for b in kept[i + 1 :]]
    for a, b in pairs:
        table = {name: compare(values[a][name], values[b][name], seed) for name in metrics}
        corrected = holm([found.p for found in table.values()])
        result.differences[a, b] = {
            name: replace(found, p_holm=p) for (name, found), p in zip(table.items(), corrected, strict=True)
        }
    if len(kept) > 1:
        means = {method: {name: mean.mean for name, mean in table.items()} for method, table in result.means.items()}
        better = {name: metric.better for name, metric in metrics.items() if metric.ranked}
        result.ranks, result.ranked = average_ranks(means, better)
    return result


def differing(key: Key, found: Mapping[str, Measurement]) -> list[Problem]:
    """What keeps the methods' videos of one prompt from being compared, or makes it questionable."""
    place = f"prompt {key[0]}, sample {key[1]}"
    seconds, sizes = {m: f.seconds for m, f in found.items()}, {m: f.size for m, f in found.items()}
    problems = []
    if max(seconds.values()) - min(seconds.values()) > LENGTHS * max(seconds.values()):
        lengths = ", ".join(f"{method} {length:.1f} s" for method, length in seconds.items())
        problems.append(Problem(place, f"lengths differ, not compared: {lengths}"))
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{method} {width}x{height}" for method, (width, height) in sizes.items())
        problems.append(Problem(place, f"sizes differ, compared with care: {listed}"))
    return problems


def _units(found: Mapping[Key, Measurement], keys: Sequence[Key], metric: str) -> dict[str, float]:
    return by_group({key: found[key].scores[metric] for key in keys})
