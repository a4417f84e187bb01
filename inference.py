"""Generate videos: `python inference.py CONFIG.yaml [key=value ...]`, or under torchrun by `inference.sh`.

Prompts are shared out over torchrun's processes. Each video is written with a JSON record and,
with retrieval, a plot of what was retrieved.
"""

from pipeline.command_line import parse_command_line
from pipeline.config import RunConfig
from pipeline.prompts import Prompt, file_names, load_prompts
from utils.claim import claim
from utils.errors import run
from utils.ffmpeg import require_encoder
from utils.files import require_writable
from utils.processes import rank, share


def main() -> None:
    config = parse_command_line()
    if config.parent and not share([config.parent]):
        return  # a fork is one video, and the first processes make it
    prompts = [] if config.parent else load_prompts(config.prompt, config.data_path, config.inference_iter)
    generate(config, prompts)


def generate(config: RunConfig, prompts: list[Prompt]) -> None:
    """Make this process's share of the videos, except finished ones."""
    from pipeline.build import cut_prompts  # slow to import (torch, diffusers): only after the arguments are right
    from pipeline.course import forked, samples_of
    from pipeline.preflight import preflight
    from pipeline.record import Digests, check_records, identity
    from pipeline.run import make
    from pipeline.sinks import VideoSink
    from pipeline.unfinished import discard_left

    require_encoder()
    found = preflight(config)
    notes: list[str] = []
    if config.parent:
        sample, name = forked(found, Digests(found.files, config.text_cache)())
        names = {sample: name}
    else:
        samples, notes = samples_of(found, prompts, config.num_samples)
        stems = file_names(prompts, config.save_with_index)
        names = {sample: f"{stems[sample.index]}-{sample.number}" for sample in samples}
    if note := cut_prompts(found, list(names)):
        notes.append(note)
    if rank() == 0 and notes:
        print("\n".join(notes), flush=True)
    folder = require_writable(config.output_folder, need_bytes=1 << 24)
    weights = Digests(found.files, config.text_cache)
    sink = VideoSink(folder, names, config, weights)
    with claim(folder, identity(config, list(names))) as held:
        finished = {sample: sink.path(sample) for sample in names if sink.is_finished(sample)}
        check_records(finished, config, weights)
        discard_left(finished.values(), held)
        make(found, list(names), sink, held)


if __name__ == "__main__":
    run(main)
