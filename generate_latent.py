"""Generate a corpus of latents: `python generate_latent.py CONFIG.yaml [key=value ...]`, or by `generate_latent.sh`.

Writes `latent_{position:06d}.pt`, each [F, C, H, W] in bfloat16, and `manifest.json` into one folder.
Which process makes a file, and whether the run was interrupted, leaves every byte as it is.
"""

from dataclasses import replace

from pipeline.command_line import parse_command_line
from pipeline.config import CorpusConfig
from pipeline.prompts import Prompt, load_prompts, sample_prompts
from utils.claim import claim
from utils.errors import run
from utils.ffmpeg import require_encoder
from utils.files import require_writable
from utils.processes import rank


def main() -> None:
    config = parse_command_line(CorpusConfig)
    pool = load_prompts(config.prompt, config.data_path, config.inference_iter)
    generate(config, sample_prompts(pool, config.sample_ratio, config.seed))


def generate(config: CorpusConfig, prompts: list[Prompt]) -> None:
    """Make this process's share of the corpus, except finished files."""
    from pipeline.build import cut_prompts  # slow to import (torch, diffusers): only after the arguments are right
    from pipeline.course import samples_of
    from pipeline.preflight import preflight
    from pipeline.record import Digests, check_manifest, identity
    from pipeline.run import make
    from pipeline.sinks import LatentSink

    if config.max_video_saves:
        require_encoder()
    found = preflight(config)
    placed = [replace(prompt, index=position) for position, prompt in enumerate(prompts)]
    samples, notes = samples_of(found, placed)
    if note := cut_prompts(found, samples):
        notes.append(note)
    if rank() == 0 and notes:
        print("\n".join(notes), flush=True)
    folder = require_writable(config.output_folder, need_bytes=1 << 24)
    weights = Digests(found.files, config.text_cache)()
    with claim(folder, identity(config, samples)) as held:
        check_manifest(folder / "manifest.json", config, prompts, samples, weights, write=rank() == 0)
        make(found, samples, LatentSink(folder, config.max_video_saves, config.skip_existing), held)


if __name__ == "__main__":
    run(main)
