"""The loop over a run's samples; all commands share it."""

from collections.abc import Sequence

from pipeline.build import load
from pipeline.generation import LatentBlock
from pipeline.group import Group, joined
from pipeline.preflight import Preflight
from pipeline.samples import Sample, batches_of
from pipeline.sinks import Follower, Sink
from utils.claim import Claim
from utils.processes import rank, share
from utils.progress import Progress
from utils.stop import stop


def make(found: Preflight, samples: Sequence[Sample], sink: Sink, claim: Claim) -> None:
    """Make this process's share of the samples, alone or in a group, except finished ones.

    Args:
        found: what the run was found to need and to have.
        samples: of the whole run, the same in every process.
        sink: where they end.
        claim: on the folder, which other runs of the same settings may share.
    """
    with joined(found.device) as group:
        make_share(found, samples, sink if group.leads else Follower(sink), claim, group)


def make_share(found: Preflight, samples: Sequence[Sample], sink: Sink, claim: Claim, group: Group) -> None:
    """The same for a group that has met; its first process says which files are missing and writes them."""
    config = found.config
    mine = share(batches_of(samples, config.batch_size))  # before finished ones are left out: processes agree
    todo = group.first(_unfinished, mine, sink)
    count = sum(len(_missing(batch, sink)) for batch in todo)
    blocks = config.blocks
    block_frames = found.format.block_frames(config.num_frame_per_block)
    progress = Progress(count, blocks, block_frames, quiet=rank() > 0)
    finished = sum(len(batch) for batch in mine) - count
    progress.say(f"{len(samples)} to make in {config.output_folder}, {finished} of this process's are finished already")
    if not todo:
        return
    progress.say(found.describe())
    pipeline = load(found, _prompts(todo), group)
    stop.tell = lambda: f"{progress.made} of {count} videos are finished"

    def on_block(block: LatentBlock) -> None:
        retrieved = block.selection.frames[0] if block.selection else ()
        progress.step(block.memory_bytes, retrieved, block.transfers.dropped)

    elsewhere = 0
    for batch in todo:
        taken = group.first(_take, claim, batch, sink)
        if taken:
            name = sink.path(taken[0]).name
            progress.begin(name, len(taken))
            made = group.first(sink.made, batch, taken)
            if made:
                progress.say(
                    f"{name} goes on: {len(made[0].frames)} of {config.num_output_frames} latent frames are there"
                )
            sink.write(pipeline, batch, taken, pipeline.blocks(batch, made=made), on_block)
            progress.end()
        else:
            elsewhere += len(batch)
        for sample in taken if group.leads else []:
            claim.give_back(sink.path(sample).name)
    progress.close()
    if elsewhere:
        progress.say(f"{elsewhere} were made, or are being made, by another run of the same settings")
    progress.say(f"done: {progress.made} in {config.output_folder}")


def _prompts(batches: Sequence[Sequence[Sample]]) -> list[str]:
    """All prompts of all samples, those that come later in a video included."""
    found: list[str] = []
    for batch in batches:
        for sample in batch:
            found += sample.prompts
    return found


def _unfinished(batches: Sequence[Sequence[Sample]], sink: Sink) -> list[Sequence[Sample]]:
    return [batch for batch in batches if _missing(batch, sink)]


def _missing(batch: Sequence[Sample], sink: Sink) -> list[Sample]:
    return [sample for sample in batch if not sink.is_finished(sample)]


def _take(claim: Claim, batch: Sequence[Sample], sink: Sink) -> list[Sample]:
    """The samples of a batch that this process is to finish: what is missing, if no other run is at it."""
    taken = []
    for sample in _missing(batch, sink):
        name = sink.path(sample).name
        if not claim.take(name):
            continue
        if sink.is_finished(sample):  # by another run, just before it was taken
            claim.give_back(name)
        else:
            taken.append(sample)
    return taken
