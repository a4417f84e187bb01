"""Generate a corpus of latents: `python generate_latent.py CONFIG.yaml [key=value ...]`, or by `generate_latent.sh`.

Writes `latent_{position:06d}.pt`, each [F, C, H, W] in bfloat16, and `manifest.json` into one folder.
Which process makes a file, and whether the run was interrupted, leaves every byte as it is.
"""

from pathlib import Path

from pipeline.config import CorpusConfig, parse_command_line
from pipeline.prompts import Prompt, read_prompts, sample_prompts
from utils.errors import run
from utils.files import require_writable
from utils.processes import rank, share
from utils.progress import Progress


def main() -> None:
    config = parse_command_line(__doc__, CorpusConfig)
    pool = [Prompt(0, config.prompt)] if config.prompt else read_prompts(config.data_path, config.inference_iter)
    generate(config, sample_prompts(pool, config.sample_ratio, config.seed))


def generate(config: CorpusConfig, prompts: list[Prompt]) -> None:
    """Make this process's share of the corpus, except finished files."""
    import torch  # slow to import, as are the modules below: only after the arguments are right

    from pipeline import build
    from pipeline.outputs import Digests, check_manifest, save_clip
    from pipeline.pipeline import Sample, load
    from utils.tensors import save_tensors

    build.check(config)
    folder = require_writable(config.output_folder, need_bytes=1 << 24)
    weights = Digests(build.weight_files(config), config.text_cache)()
    check_manifest(folder / "manifest.json", config, prompts, weights, write=rank() == 0)
    samples = [Sample(prompt.text, position) for position, prompt in enumerate(prompts)]
    batches = [samples[i : i + config.batch_size] for i in range(0, len(samples), config.batch_size)]

    def path(sample: Sample) -> Path:
        return folder / f"latent_{sample.index:06d}.pt"

    # A batch is made anew as a whole: what is computed together stays together, to the last bit.
    todo = [batch for batch in share(batches) if not all(config.skip_existing and path(s).exists() for s in batch)]
    blocks, block_frames = config.num_output_frames // config.num_frame_per_block, 4 * config.num_frame_per_block
    progress = Progress(sum(map(len, todo)), blocks, block_frames, quiet=rank() > 0)
    progress.say(f"{len(samples)} latents to {folder}, {len(share(batches)) - len(todo)} batches finished already here")
    if not todo:
        return
    progress.say(build.describe(config))
    pipeline = load(config, prompts=[sample.prompt for batch in todo for sample in batch])
    for batch in todo:
        progress.begin(path(batch[0]).name, len(batch))
        parts = []
        for block in pipeline.blocks(batch):
            parts.append(block.latents.to("cpu", torch.bfloat16))
            progress.step(block.memory_bytes, block.selection.frames[0] if block.selection else (), block.dropped)
        for sample, latents in zip(batch, torch.cat(parts, dim=1), strict=True):
            save_tensors(path(sample), latents.clone())
            if sample.index < config.max_video_saves:
                save_clip(pipeline.vae, latents, folder / "videos" / f"latent_{sample.index:06d}.mp4", config.fps)
        progress.end()
    progress.close()
    progress.say(f"done: {folder}")


if __name__ == "__main__":
    run(main)
