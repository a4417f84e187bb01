"""The trained parts as files that the pipeline loads, and the held-out captions to try them on."""

from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from tinyworld.training.backbone import Backbone
from tinyworld.world.captions import caption
from tinyworld.world.film import held_out
from tinyworld.world.scene import draw_scene, draw_shot, meaning
from utils.files import atomic, write_json

CORPUS = 2_000_000  # the first seed of the scenes of the retrieval encoder's corpus
CORPUS_CAPTIONS = 128


def export_vae(vae: AutoencoderKLWan, folder: Path) -> None:
    """Write the codec, with its latents' mean and deviation, to `wan_models/tinyworld/vae/`."""
    vae.save_pretrained(folder / "wan_models" / "tinyworld" / "vae")


def export_backbone(backbone: Backbone, folder: Path) -> None:
    """Write the transformer's sizes and weights and the text encoder under `folder`."""
    models = folder / "wan_models" / "tinyworld"
    write_json(models / "config.json", backbone.model.params.to_dict())
    backbone.text.save(models)
    with atomic(folder / "checkpoints" / "tinyworld.safetensors") as temporary:
        save_file(backbone.model.state_dict(), temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def export_prompts(count: int, first: tuple[int, ...], folder: Path) -> None:
    """Write the captions of the held-out scenes, those numbered in `first` before the others, and of the corpus.

    The retrieval encoder's corpus is generated from captions of scenes that are neither trained on nor held out.
    """
    order = list(first)
    for index in range(count):
        if index not in first:
            order.append(index)
    prompts = [held_out(index).caption for index in order]
    _write_lines(folder / "checkpoints" / "tinyworld_prompts.txt", prompts)
    corpus_prompts = []
    for seed in range(CORPUS, CORPUS + CORPUS_CAPTIONS):
        corpus_prompts.append(caption(meaning(draw_scene(seed), draw_shot(seed))))
    _write_lines(folder / "checkpoints" / "tinyworld_corpus_prompts.txt", corpus_prompts)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))
