"""Generate videos: `python inference.py CONFIG.yaml [key=value ...]`, or under torchrun by `inference.sh`.

Prompts are shared out over torchrun's processes. Each video is written with a JSON record and,
with retrieval, a plot of what was retrieved.
"""

from pipeline.config import RunConfig, parse_command_line
from pipeline.prompts import Prompt, file_names, load_prompts
from utils.claim import claim
from utils.errors import run
from utils.ffmpeg import require_encoder
from utils.files import require_writable
from utils.processes import rank


def main() -> None:
    config = parse_command_line()
    generate(config, load_prompts(config.prompt, config.data_path, config.inference_iter))


def generate(config: RunConfig, prompts: list[Prompt]) -> None:
    """Make this process's share of the videos, except finished ones."""
    from pipeline.build import cut_prompts  # slow to import (torch, diffusers): only after the arguments are right
    from pipeline.preflight import preflight
    from pipeline.record import Digests, check_records, identity
    from pipeline.run import make
    from pipeline.samples import Sample
    from pipeline.sinks import VideoSink

    require_encoder()
    found = preflight(config)
    if rank() == 0 and (note := cut_prompts(found, prompts)):
        print(note, flush=True)
    folder = require_writable(config.output_folder, need_bytes=1 << 24)
    weights = Digests(found.files, config.text_cache)
    sink = VideoSink(folder, file_names(prompts, config.save_with_index), config.skip_existing, weights)
    samples = [Sample(prompt.text, prompt.index, n) for prompt in prompts for n in range(config.num_samples)]
    with claim(folder, identity(config, prompts)) as held:
        finished = {sample: sink.path(sample) for sample in samples if sink.is_finished(sample)}
        check_records(finished, config, weights)
        make(found, samples, sink, held)


if __name__ == "__main__":
    run(main)
