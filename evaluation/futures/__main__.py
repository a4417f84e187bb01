"""Futures of one past, compared: `python -m evaluation.futures BACKBONE from=VIDEO at=TIME [key=value ...]`.

A finished video, or each of a folder, is gone on with from a time: under several methods, prompts or seeds. What is
before is committed once for all futures of a method. Each future is kept as the files of a run, those that are to be
compared in folders of their own, and the evaluation's report compares the folders. Other settings are those of
inference.sh. Stopped, the same command goes on; several at once share the work.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.futures.past import commit, make, waiting
from evaluation.futures.plan import Future, Past, pasts_of
from evaluation.futures.settings import FuturesSettings, read_command_line
from evaluation.report.write import report
from pipeline.build import load
from pipeline.pipeline import Pipeline
from pipeline.record import check_records, identity
from utils.claim import Claim, claim
from utils.errors import UserError, run
from utils.ffmpeg import require_encoder
from utils.files import require_writable
from utils.processes import world_size
from utils.progress import Progress
from utils.stop import stop


def main() -> None:
    backbone, settings, of_runs = read_command_line(sys.argv[1:])
    if world_size() > 1:
        raise UserError("futures are made by one process; start the command once for each GPU: they share the work")
    require_encoder()
    pasts = pasts_of(backbone, settings, of_runs)
    for past in pasts:
        for future in past.futures:
            if is_finished(future):
                check_records({future.sample: future.path}, future.config, past.digests)
    folder = require_writable(settings.folder, need_bytes=1 << 24)
    with claim(folder, about(settings, pasts)) as held:
        make_all(pasts, folder, held)
    columns: dict[str, str] = {}
    for past in pasts:
        for future in past.futures:
            if not future.path.exists():
                print("the rest is being made by another process, which will compare them", flush=True)
                return
            columns[future.column] = f"{future.column}={future.path.parent}"
    report(list(columns.values()), folder, settings.workers or os.cpu_count() or 1)


def about(settings: FuturesSettings, pasts: Sequence[Past]) -> dict[str, Any]:
    """What decides the content of the folder."""
    found = {"futures": [settings.at, settings.methods, settings.prompts, settings.seeds]}
    for past in pasts:
        found[past.name] = identity(past.found.config, [future.sample for future in past.futures])
    return found


def missing(past: Past) -> list[Future]:
    return [future for future in past.futures if not is_finished(future)]


def is_finished(future: Future) -> bool:
    return future.config.skip_existing and future.path.exists()


def make_all(pasts: Sequence[Past], folder: Path, held: Claim) -> None:
    """Make the futures that are missing, those of one method after another."""
    count = sum(len(missing(past)) for past in pasts)
    config = pasts[0].found.config
    block_frames = pasts[0].found.format.block_frames(config.num_frame_per_block)
    progress = Progress(count, config.blocks - pasts[0].blocks, block_frames)
    progress.say(f"{sum(len(past.futures) for past in pasts)} futures of {len(pasts)} pasts, {count} to be made")
    stop.tell = lambda: f"{progress.made} of {count} futures are finished"
    pipeline = None
    method = ""
    for past in pasts:
        if not held.take(past.name):
            continue
        if not missing(past):
            waiting(past, folder).discard()  # a kill came between the last future and this
            continue
        if method != past.method:
            method, pipeline = past.method, None  # free it before the next one is loaded
            progress.say(past.found.describe())
            pipeline = load(past.found, _prompts(pasts, method))
        make_past(past, pipeline, folder, progress)
        held.give_back(past.name)
    progress.close()


def make_past(past: Past, pipeline: Pipeline, folder: Path, progress: Progress) -> None:
    """Commit a past and make those of its futures that are missing."""
    started = time.monotonic()
    committed = commit(past, pipeline, folder)
    seconds = time.monotonic() - started
    progress.say(f"{past.parent.name} under {past.method}: its {past.blocks} blocks are there after {seconds:.1f} s")
    for future in missing(past):
        progress.begin(f"{future.column}/{future.name}", 1)
        make(past, future, committed, pipeline, progress)
        progress.end()
    waiting(past, folder).discard()


def _prompts(pasts: Sequence[Past], method: str) -> list[str]:
    """All prompts of a method's futures that are missing."""
    found: list[str] = []
    for past in pasts:
        if past.method == method:
            for future in missing(past):
                found += future.sample.prompts
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    run(main)
