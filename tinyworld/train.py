"""Make the world and all that films it: `python -m tinyworld.train [key=value ...]`.

The stages run in order: world -> vae -> latents -> backbone -> few-step -> retrieval encoder. Each is
skipped where its result exists, and goes on where it was cut off; contact sheets show what the codec, the
backbone and few-step training have learned. `python -m tinyworld.report` then judges the result.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from pipeline.build import find_device
from tinyworld import backbone, corpus, fewstep, report, vae
from tinyworld.release import release_backbone, release_prompts, release_vae
from tinyworld.settings import TrainSettings
from utils.errors import run
from utils.files import atomic, require_writable
from utils.settings import load_settings

CONFIG = Path("configs/tinyworld_train.yaml")


def main() -> None:
    train(load_settings(TrainSettings, CONFIG, sys.argv[1:]))


def train(settings: TrainSettings) -> None:
    """Run every stage that is not done; the weights are in `settings.export` afterwards."""
    torch.set_num_threads(settings.threads)
    work, export = require_writable(settings.work, need_bytes=2 * 10**9), require_writable(settings.export)
    corpus.paint_gallery(settings.world, work)
    codec = _codec(settings, work)
    corpora = corpus.encode_corpus(codec, settings.latents, work)
    release_vae(codec, export)
    film = backbone.train(settings.backbone, corpora, work, settings.seed)
    release_backbone(film, export)
    show(export, work / "backbone_sheet.png")
    film = fewstep.train(film, settings.fewstep, settings.backbone, corpora, work, settings.seed)
    release_backbone(film, export)
    show(export, work / "fewstep_sheet.png")
    release_prompts(settings.world.held_out, tuple(settings.world.shown), export)
    train_encoder(settings, work, export)
    print(f"weights and captions are in {export}")


def _codec(settings: TrainSettings, work: Path) -> AutoencoderKLWan:
    scenes = (corpus.gallery(work, name) for name in ("panoramas", "held_out"))
    codec = vae.train(settings.vae, *scenes, work, settings.seed, find_device(settings.device))
    true = [corpus.held_out(i, 17).video for i in range(3)]
    again = [report.reconstruct(codec, video) for video in true]
    report.sheet(work / "vae_sheet.png", len(true), true, again, seconds=(0, 1))
    return codec


def show(export: Path, path: Path) -> None:
    """A contact sheet of how held-out videos start: true and generated frames at 0 and 1 s."""
    weights = {"model_root": f"{export}/wan_models", "generator_ckpt": f"{export}/checkpoints/tinyworld.safetensors"}
    settings, clips = report.ReportSettings(**weights), [corpus.held_out(i, 21) for i in range(3)]
    made = report.generate(settings, clips, 6, lambda line: None)
    report.sheet(path, len(clips), [clip.video for clip in clips], made, seconds=(0, 1))


def train_encoder(settings: TrainSettings, work: Path, export: Path) -> None:
    """Generate a corpus of latents and train the retrieval encoder on it, as users do; both go on where they were."""
    run_module(
        "generate_latent", "configs/tinyworld_generate_latent.yaml", f"model_root={export}/wan_models",
        f"generator_ckpt={export}/checkpoints/tinyworld.safetensors", f"output_folder={work}/corpus",
        f"data_path={export}/checkpoints/tinyworld_corpus_prompts.txt", f"seed={settings.seed}",
        *settings.encoder.corpus,
    )  # fmt: skip
    run_module(
        "ae.train", "configs/tinyworld_ae.yaml", f"data_dir={work}/corpus", f"log_dir={work}", "tag=encoder",
        f"in_channels={settings.vae.z_dim}", *settings.encoder.training,
    )  # fmt: skip
    with atomic(export / "checkpoints" / "tinyworld_ae.safetensors") as temporary:
        shutil.copyfile(work / "encoder" / "encoder.safetensors", temporary)


def run_module(*arguments: str) -> None:
    """Run `python -m arguments`; where it fails, it has said why."""
    if status := subprocess.run([sys.executable, "-m", *arguments], check=False).returncode:
        sys.exit(status)


if __name__ == "__main__":
    run(main)
