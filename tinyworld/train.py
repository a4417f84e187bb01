"""Train tinyworld's models: `python -m tinyworld.train [key=value ...]`.

The stages run in order: world -> vae -> latents -> backbone -> few-step -> retrieval encoder. Each is
skipped where its result exists, and goes on where it was cut off; contact sheets show what the codec, the
backbone and few-step training have learned. `python -m tinyworld.report` then judges the result.
"""

import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from ae.settings import load_train_settings
from pipeline.config import CorpusConfig, load_config
from pipeline.preflight import find_device
from tinyworld import films
from tinyworld.training import backbone, corpus, fewstep, gallery, vae
from tinyworld.training.export import export_backbone, export_prompts, export_vae, load_backbone
from tinyworld.training.settings import TrainSettings
from tinyworld.world.film import HELD_OUT, held_out
from utils.claim import claim
from utils.errors import UserError, run
from utils.files import atomic, require_writable
from utils.launch import run_module
from utils.settings import load_settings
from wan.vae import load_vae

CONFIG = Path("configs/tinyworld_train.yaml")


def main() -> None:
    train(load_settings(TrainSettings, CONFIG, sys.argv[1:]))


def train(settings: TrainSettings) -> None:
    """Look at all settings, then run every stage that is not done; the weights are in `settings.export` afterwards."""
    device = find_device(settings.device)
    require_later_settings(settings)
    torch.set_num_threads(settings.threads)
    work = require_writable(settings.work, need_bytes=2 * 10**9)
    export = require_writable(settings.export)
    for folder in ("checkpoints", "wan_models/tinyworld"):
        require_writable(export / folder)
    with claim(work, {"what": "a training"}) as held:
        if not held.take("training"):
            raise UserError(f"another training is at work in {work}; wait until it ends, or set another work=")
        make(settings, device, work, export)


def make(settings: TrainSettings, device: torch.device, work: Path, export: Path) -> None:
    """Run the stages."""
    policy = settings.policy()
    gallery.paint_galleries(settings.world, work, settings.workers)
    scenes = gallery.load_gallery(work, "panoramas", settings.world.first)
    if settings.continues:
        codec = load_vae(Path(settings.continues) / "wan_models" / "tinyworld" / "vae", device)
    else:
        codec = train_codec(settings, scenes, work, device)
    corpora = corpus.encode_corpus(
        codec, scenes, settings.latents, work, normalise=not settings.continues, workers=settings.workers
    )
    export_vae(codec, export)
    start = load_backbone(settings.backbone, Path(settings.continues), device) if settings.continues else None
    film = backbone.train(
        settings.backbone, policy, corpora, work, settings.seed, device, start=start, workers=settings.workers
    )
    export_backbone(film, export)
    draw_starts(export, work / "backbone_sheet.png")
    film = fewstep.train(
        film, settings.fewstep, settings.backbone, policy, corpora, work, settings.seed, device, settings.workers
    )
    export_backbone(film, export)
    draw_starts(export, work / "fewstep_sheet.png")
    export_prompts(settings.world.held_out, settings.world.shown, export)
    train_encoder(settings, work, export)
    print(f"weights and captions are in {export}")


def train_codec(
    settings: TrainSettings, panoramas: gallery.Gallery, work: Path, device: torch.device
) -> AutoencoderKLWan:
    """Train the codec, and draw what it makes of held-out videos beside them."""
    unseen = gallery.load_gallery(work, "held_out", HELD_OUT)
    codec = vae.train(settings.vae, panoramas, unseen, work, settings.seed, device)
    true = [held_out(index, 17).video for index in range(3)]
    again = [films.reconstruct(codec, video) for video in true]
    films.draw_sheet(work / "vae_sheet.png", [true, again], clips=len(true), seconds=(0, 1))
    return codec


def draw_starts(export: Path, path: Path) -> None:
    """A contact sheet of how held-out videos start: true and generated frames at 0 and 1 s."""
    clips = [held_out(index, 21) for index in range(3)]
    weights = films.Weights(f"{export}/wan_models", f"{export}/checkpoints/tinyworld.safetensors")
    made = films.generate("configs/tinyworld_native.yaml", weights, clips, frames=6, batch=16)
    films.draw_sheet(path, [[clip.video for clip in clips], made], clips=len(clips), seconds=(0, 1))


def train_encoder(settings: TrainSettings, work: Path, export: Path) -> None:
    """Generate a corpus of latents and train the retrieval encoder on it, as users do; both go on where they were."""
    run_module("generate_latent", *corpus_arguments(settings, work, export))
    run_module("ae.train", *encoder_arguments(settings, work))
    with atomic(export / "checkpoints" / "tinyworld_ae.safetensors") as temporary:
        shutil.copyfile(work / "encoder" / "encoder.safetensors", temporary)


def corpus_arguments(settings: TrainSettings, work: Path, export: Path) -> list[str]:
    """What `generate_latent` is started with."""
    return [
        "configs/tinyworld_generate_latent.yaml", f"model_root={export}/wan_models",
        f"generator_ckpt={export}/checkpoints/tinyworld.safetensors", f"output_folder={work}/corpus",
        f"data_path={export}/checkpoints/tinyworld_corpus_prompts.txt", f"seed={settings.seed}",
        *settings.encoder.corpus,
    ]  # fmt: skip


def encoder_arguments(settings: TrainSettings, work: Path) -> list[str]:
    """What `ae.train` is started with."""
    return [
        "ae/configs/tinyworld_ae.yaml", f"data_dir={work}/corpus", f"log_dir={work}", "tag=encoder",
        f"in_channels={settings.vae.z_dim}", *settings.encoder.training,
    ]  # fmt: skip


def require_later_settings(settings: TrainSettings) -> None:
    """Refuse settings of the last stages now, and not after all those before."""
    work = Path(settings.work)
    config, *overrides = corpus_arguments(settings, work, Path(settings.export))
    load_config(config, overrides, CorpusConfig)
    config, *overrides = encoder_arguments(settings, work)
    load_train_settings(config, overrides)


if __name__ == "__main__":
    run(main)
