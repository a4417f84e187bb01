"""The trained parts as files that the pipeline loads, and the held-out captions to try them on."""

from pathlib import Path

from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from tinyworld.backbone import Backbone
from tinyworld.corpus import held_out
from utils.files import atomic, write_json


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
    """Write the captions of the held-out scenes, one a line, those numbered in `first` before the others."""
    order = [*first, *(i for i in range(count) if i not in first)]
    with atomic(folder / "checkpoints" / "tinyworld_prompts.txt") as temporary:
        temporary.write_text("".join(held_out(i).caption + "\n" for i in order))
