"""Measure every video of every method, and compare the methods."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import active_children, get_context
from pathlib import Path

from evaluation.compare.pairing import Key, Method, Problem, unpaired
from evaluation.compare.statistics import Difference, Estimate, average_ranks, by_group, compare, estimate, holm
from evaluation.video.measure import METRICS, Measurement, Metric, measure
from evaluation.video.reader import BadVideo
from utils.errors import UserError
from utils.worker import end_with

STANDS_STILL = 0.5  # part of another method's motion below which a method's drift is not taken for an achievement
LENGTHS = 0.05  # videos whose lengths differ by more than this share are not compared

Measured = dict[str, dict[Key, Measurement]]  # method -> key -> measurement


@dataclass
class Evaluation:
    """Everything a report shows.

    Attributes:
        compared: keys that every method has in comparable length; statistics are over these.
        means: method -> metric -> estimate.
        differences: (method a, method b) -> metric -> difference b - a.
        ranks: method -> average rank over `ranked`.
        notes: what to mind in reading the numbers.
    """

    methods: list[Method]
    metrics: dict[str, Metric]
    measured: Measured
    problems: list[Problem]
    compared: list[Key] = field(default_factory=list)
    means: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    differences: dict[tuple[str, str], dict[str, Difference]] = field(default_factory=dict)
    ranks: dict[str, float] = field(default_factory=dict)
    ranked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        """Plain data: what report.json holds."""
        methods = {}
        for method in self.methods:
            methods[method.name] = self._method(method)
        compared = []
        for prompt, sample in self.compared:
            compared.append({"prompt": prompt, "sample": sample})
        differences = []
        for (a, b), table in self.differences.items():
            differences.append({"from": a, "to": b, "metrics": _plain(table)})
        return {
            "metrics": _plain(self.metrics),
            "methods": methods,
            "compared": compared,
            "ranked": self.ranked,
            "differences": differences,
            "problems": [asdict(problem) for problem in self.problems],
            "notes": self.notes,
        }

    def _method(self, method: Method) -> dict:
        videos = []
        for key, found in self.measured[method.name].items():
            names = {"file": str(method.videos[key]), "prompt": key[0], "sample": key[1]}
            videos.append(names | found.to_json())
        return {
            "folder": str(method.path),
            "average_rank": self.ranks.get(method.name),
            "means": _plain(self.means.get(method.name, {})),
            "videos": videos,
        }


def _plain(table: Mapping[str, Metric | Estimate | Difference]) -> dict[str, dict]:
    return {name: asdict(found) for name, found in table.items()}


@dataclass(frozen=True)
class Job:
    """A video to measure, and the numbers of the frames that the report shows."""

    method: str
    key: Key
    path: Path
    thumbnails: frozenset[int]


def measure_all(methods: Sequence[Method], workers: int, say: Callable[[str], None]) -> tuple[Measured, list[Problem]]:
    """Measure every video in `workers` processes; what cannot be read becomes a problem."""
    jobs = []
    for method in methods:
        for key in sorted(method.videos):
            shown = frozenset(method.record(key).frames)
            jobs.append(Job(method.name, key, method.videos[key], shown))
    results: dict[tuple[str, Key], Measurement] = {}
    problems = []
    for job, result in _results(jobs, workers):
        if isinstance(result, Measurement):
            results[job.method, job.key] = result
            line = brief(result)
        else:
            problems.append(Problem(str(job.path), result))
            line = result
        say(f"{len(results) + len(problems)}/{len(jobs)} {job.method}/{job.path.name}: {line}")
    measured: Measured = {method.name: {} for method in methods}
    for job in jobs:  # in their order, whichever was ready first
        if (job.method, job.key) in results:
            measured[job.method][job.key] = results[job.method, job.key]
    problems.sort(key=lambda problem: problem.place)
    return measured, problems


def _results(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Measurement | str]]:
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield job, measure_one(job)
        return
    count = min(workers, len(jobs))
    own = {"mp_context": get_context("spawn"), "initializer": end_with, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(count, **own) as pool:
        futures = {pool.submit(measure_one, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {workers} processes that measure videos was killed, most likely for want of memory; "
                "give fewer --workers"
            ) from error
        except BaseException:  # a stop: the pool would wait for the videos that are being measured
            for process in active_children():
                process.kill()
            raise


def measure_one(job: Job) -> Measurement | str:
    """Measure a video, or say what is wrong with it."""
    try:
        return measure(job.path, job.thumbnails)
    except BadVideo as error:
        return str(error)


def brief(found: Measurement) -> str:
    """One line on one video."""
    line = f"{found.seconds:.1f} s, drift {found.scores['drift']:.2f}"
    seams = [f"{seam.frame}->{seam.frame + 1}" for seam in found.seams if seam.kind == "seam"]
    if seams:
        line += f", seam at frame {', '.join(seams[:4])}"
    if len(seams) > 4:
        line += ", ..."
    if found.cuts == 1:
        line += ", 1 cut"
    if found.cuts > 1:
        line += f", {found.cuts} cuts"
    return line


def evaluate(
    methods: Sequence[Method],
    measured: Mapping[str, Mapping[Key, Measurement]],
    problems: Sequence[Problem],
    seed: int = 0,
) -> Evaluation:
    """Compare methods over the videos that all of them have."""
    result = Evaluation([], METRICS, {}, list(problems))
    for method in methods:
        found = dict(measured[method.name])
        if found:
            videos = {key: method.videos[key] for key in found}
            result.methods.append(Method(method.name, method.path, videos, method.records))
            result.measured[method.name] = found
    result.problems += unpaired(result.methods)
    _choose_compared(result)
    if result.compared:
        _compare(result, seed)
    return result


def _choose_compared(result: Evaluation) -> None:
    """Find the keys that every method has, in comparable length."""
    if not result.methods:
        return
    for key in result.methods[0].videos:
        found = {}
        for method in result.methods:
            if key in method.videos:
                found[method.name] = result.measured[method.name][key]
        if len(found) < len(result.methods):
            continue
        lengths = differing_lengths(key, found)
        if lengths is None:
            result.compared.append(key)
        else:
            result.problems.append(lengths)
        sizes = differing_sizes(key, found)
        if sizes is not None:
            result.problems.append(sizes)


def differing_lengths(key: Key, found: Mapping[str, Measurement]) -> Problem | None:
    """Lengths that keep the methods' videos of one prompt from being compared."""
    seconds = {method: one.seconds for method, one in found.items()}
    longest = max(seconds.values())
    if longest - min(seconds.values()) <= LENGTHS * longest:
        return None
    listed = ", ".join(f"{method} {length:.1f} s" for method, length in seconds.items())
    return Problem(_place(key), f"lengths differ, not compared: {listed}")


def differing_sizes(key: Key, found: Mapping[str, Measurement]) -> Problem | None:
    """Picture sizes that make the comparison of one prompt's videos questionable."""
    if len({one.size for one in found.values()}) == 1:
        return None
    listed = ", ".join(f"{method} {one.size[0]}x{one.size[1]}" for method, one in found.items())
    return Problem(_place(key), f"sizes differ, compared with care: {listed}")


def _place(key: Key) -> str:
    return f"prompt {key[0]}, sample {key[1]}"


def _compare(result: Evaluation, seed: int) -> None:
    """Means of each method, differences of each pair, and ranks."""
    values = {}
    for method in result.methods:
        values[method.name] = _by_prompt(result, method)
        means = {}
        for name, of_prompt in values[method.name].items():
            means[name] = estimate(of_prompt.values(), seed)
        result.means[method.name] = means
    for i, a in enumerate(result.methods):
        for b in result.methods[i + 1 :]:
            result.differences[a.name, b.name] = _differences(values[a.name], values[b.name], seed)
    if len(result.methods) > 1:
        better = {name: metric.better for name, metric in result.metrics.items() if metric.ranked}
        scores = {}
        for method, row in result.means.items():
            scores[method] = {name: found.mean for name, found in row.items()}
        result.ranks, result.ranked = average_ranks(scores, better)
        result.notes = notes_of_stillness(scores)


def notes_of_stillness(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each method that moves or shows far less than another: what stands still does not drift."""
    notes = []
    for name in ("motion", "new content"):
        unit = METRICS[name].unit
        most = max(scores, key=lambda method: scores[method][name])
        for method, row in scores.items():
            if row[name] < STANDS_STILL * scores[most][name]:
                notes.append(
                    f"{method} has {row[name]:.1f} {unit} of {name} and {most} {scores[most][name]:.1f}: what stands "
                    "still does not drift, so their drift, seams and consistency are not comparable"
                )
    return notes


def _by_prompt(result: Evaluation, method: Method) -> dict[str, dict[str, float]]:
    """metric -> prompt -> mean over the prompt's compared samples."""
    found = result.measured[method.name]
    values = {}
    for name in result.metrics:
        values[name] = by_group({key: found[key].scores[name] for key in result.compared})
    return values


def _differences(
    a: Mapping[str, Mapping[str, float]], b: Mapping[str, Mapping[str, float]], seed: int
) -> dict[str, Difference]:
    """metric -> paired difference b - a, its p-value corrected for the number of metrics."""
    table = {}
    for name in a:
        found = compare(a[name], b[name], seed)
        if found is not None:
            table[name] = found
    corrected = holm([found.p for found in table.values()])
    for name, p in zip(table, corrected, strict=True):
        table[name] = replace(table[name], p_holm=p)
    return table
