"""Make the world and all that films it: `python -m tinyworld.train [key=value ...]`.

The stages run in order: world -> vae -> latents -> backbone -> few-step. Each is skipped where its
result exists, and goes on where it was cut off. `python -m tinyworld.report` then judges the result.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from tinyworld import backbone, corpus, fewstep, vae
from tinyworld.release import release_backbone, release_prompts, release_vae
from tinyworld.settings import TrainSettings
from utils.config import load_settings
from utils.errors import run
from utils.files import require_writable

CONFIG = Path("configs/tinyworld_train.yaml")


def main() -> None:
    train(load_settings(TrainSettings, CONFIG, sys.argv[1:]))


def train(settings: TrainSettings) -> None:
    """Run every stage that is not done; the weights are in `settings.export` afterwards."""
    torch.set_num_threads(settings.threads)
    work, export = require_writable(settings.work, need_bytes=2 * 10**9), require_writable(settings.export)
    corpus.paint_gallery(settings.world, work)
    codec = _codec(settings, work)
    corpora = corpus.encode_corpus(codec, settings.latents, settings.world, work)
    release_vae(codec, export)
    film = backbone.train(settings.backbone, corpora, work, settings.seed)
    film = fewstep.train(film, settings.fewstep, settings.backbone, corpora, work, settings.seed)
    release_backbone(film, export)
    speeds = tuple(settings.world.speeds)
    release_prompts(settings.world.held_out, speeds, tuple(settings.world.shown), export)
    print(f"weights and captions are in {export}")


def _codec(settings: TrainSettings, work: Path) -> AutoencoderKLWan:
    panoramas, held_out = np.load(work / "panoramas.npy", mmap_mode="r"), np.load(work / "held_out.npy")
    return vae.train(settings.vae, panoramas, held_out, tuple(settings.world.speeds), work, settings.seed)


if __name__ == "__main__":
    run(main)
