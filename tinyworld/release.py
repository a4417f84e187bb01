"""The trained parts as files that the pipeline loads, and the held-out captions to try them on."""

from pathlib import Path

from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from tinyworld.backbone import Backbone
from tinyworld.captions import caption
from tinyworld.corpus import held_out
from tinyworld.world import draw_scene, draw_shot, meaning
from utils.files import atomic, write_json

CORPUS, CORPUS_CAPTIONS = 2_000_000, 128  # the first seed of the corpus's scenes, and how many there are


def release_vae(vae: AutoencoderKLWan, folder: Path) -> None:
    """Write the codec, with its latents' mean and deviation, to `wan_models/tinyworld/vae/`."""
    vae.save_pretrained(folder / "wan_models" / "tinyworld" / "vae")


def release_backbone(backbone: Backbone, folder: Path) -> None:
    """Write the transformer's sizes and weights and the text encoder under `folder`."""
    models = folder / "wan_models" / "tinyworld"
    write_json(models / "config.json", backbone.model.params.to_dict())
    backbone.text.save(models)
    with atomic(folder / "checkpoints" / "tinyworld.safetensors") as temporary:
        save_file(backbone.model.state_dict(), temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def release_prompts(count: int, first: tuple[int, ...], folder: Path) -> None:
    """Write the captions of the held-out scenes, those numbered in `first` before the others, and of the corpus.

    The retrieval encoder's corpus is generated from captions of scenes that are neither trained on nor held out.
    """
    order = [*first, *(i for i in range(count) if i not in first)]
    with atomic(folder / "checkpoints" / "tinyworld_prompts.txt") as temporary:
        temporary.write_text("".join(held_out(i).caption + "\n" for i in order))
    captions = [caption(meaning(draw_scene(seed), draw_shot(seed))) for seed in range(CORPUS, CORPUS + CORPUS_CAPTIONS)]
    with atomic(folder / "checkpoints" / "tinyworld_corpus_prompts.txt") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in captions))
