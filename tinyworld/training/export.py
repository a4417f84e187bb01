"""The trained parts as files that the pipeline loads, and the held-out captions to try them on."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from tinyworld.training.backbone import Backbone
from tinyworld.training.settings import BackboneSettings
from tinyworld.world.captions import caption
from tinyworld.world.film import held_out
from tinyworld.world.scene import draw_scene, draw_shot, meaning
from utils.files import atomic, write_json
from utils.tensors import fill, read_tensors

CORPUS = 2_000_000  # the first seed of the scenes of the retrieval encoder's corpus
CORPUS_CAPTIONS = 128
EXPORTED = "continues= names a folder that holds wan_models/ and checkpoints/ of a training"


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


def load_backbone(settings: BackboneSettings, folder: Path, device: torch.device) -> Backbone:
    """A backbone with the weights that were exported to `folder`; its readout `ahead`, which is not, starts anew.

    Raises:
        UserError: no weights, or of other sizes than the settings'.
    """
    models = folder / "wan_models" / "tinyworld"
    weights = read_tensors(folder / "checkpoints" / "tinyworld.safetensors", "backbone", EXPORTED)
    text = read_tensors(models / "text_encoder" / "model.safetensors", "text encoder", EXPORTED)
    text["encoder.embed_tokens.weight"] = text["shared.weight"]  # one table under two names, kept under one
    backbone = Backbone(settings, weights["patch_embedding.weight"].shape[1])
    fill(backbone.model, weights, f"backbone in {folder}", device, torch.float32)
    fill(backbone.text.encoder, text, f"text encoder in {folder}", device, torch.float32)
    return backbone.to(device).requires_grad_(True)


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
