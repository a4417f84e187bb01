"""Generate videos: `python inference.py CONFIG.yaml [key=value ...]`, or under torchrun by `inference.sh`.

Prompts are shared out over torchrun's processes. Each video is written with a JSON record and,
with retrieval, a plot of what was retrieved.
"""

from pipeline.config import RunConfig, parse_command_line
from pipeline.prompts import Prompt, read_prompts
from utils.errors import run
from utils.files import require_writable
from utils.processes import rank, share
from utils.progress import Progress


def main() -> None:
    config = parse_command_line(__doc__)
    prompts = [Prompt(0, config.prompt)] if config.prompt else read_prompts(config.data_path, config.inference_iter)
    generate(config, prompts)


def generate(config: RunConfig, prompts: list[Prompt]) -> None:
    """Make this process's share of the videos, except finished ones."""
    from pipeline import build  # slow to import (torch, diffusers, transformers): only after the arguments are right
    from pipeline.outputs import Digests, check_records, file_names, save_videos
    from pipeline.pipeline import Sample, load

    build.check(config)
    folder = require_writable(config.output_folder, need_bytes=1 << 24)
    names = file_names(prompts, config.save_with_index)
    samples = [Sample(prompt.text, prompt.index, n) for prompt in prompts for n in range(config.num_samples)]
    paths = {sample: folder / f"{names[sample.index]}-{sample.number}.mp4" for sample in samples}
    finished = {sample: path for sample, path in paths.items() if config.skip_existing and path.exists()}
    files = build.weight_files(config)
    check_records(finished, config, lambda: Digests(files, config.text_cache)())
    mine = share(samples)  # before finished ones are left out: processes that start apart agree
    batches = [mine[start : start + config.batch_size] for start in range(0, len(mine), config.batch_size)]
    batches = [[sample for sample in batch if sample not in finished] for batch in batches]
    todo = [sample for batch in batches for sample in batch]
    blocks, block_frames = config.num_output_frames // config.num_frame_per_block, 4 * config.num_frame_per_block
    progress = Progress(len(todo), blocks, block_frames, quiet=rank() > 0)
    progress.say(f"{len(samples)} videos to {folder}, {len(finished)} of them finished already")
    if not todo:
        return
    progress.say(build.describe(config))
    pipeline = load(config, prompts=[sample.prompt for sample in todo])
    weights = Digests(files, config.text_cache)
    for batch in filter(None, batches):
        progress.begin(paths[batch[0]].name, len(batch))
        save_videos(pipeline, batch, [paths[sample] for sample in batch], weights, progress.step)
        progress.end()
    progress.close()
    progress.say(f"done: {', '.join(str(paths[sample]) for sample in todo[:3])}{', ...' if len(todo) > 3 else ''}")


if __name__ == "__main__":
    run(main)
