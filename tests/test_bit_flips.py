"""One bit of a file turned over, anywhere in it: refused in one line, or another number of the file and no more."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ae.dataset import scan
from ae.model import load_encoder
from ae.settings import load_train_settings
from pipeline.config import load_config
from pipeline.prompts import read_prompts
from tests.miniature import HEIGHT, PARAMS, WIDTH, make_family, write_config
from utils.errors import UserError
from wan.checkpoint import load_generator, meta_model
from wan.lora import read_loras
from wan.text_encoder import load_tokenizer, read_umt5
from wan.vae import read_vae

LATENT = (16, HEIGHT // 8, WIDTH // 8)
PLACES = 24  # of a file at which a bit is turned over


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """A miniature family in its published layout, and its parts in the other forms that files have."""
    folder = tmp_path_factory.mktemp("flips")
    write_config(folder / "run.yaml", make_family(folder))
    checkpoints = folder / "checkpoints"
    weights = load_file(checkpoints / "miniature.safetensors")
    torch.save({"generator": weights}, checkpoints / "miniature.pt")
    torch.save(weights, checkpoints / "old.pt", _use_new_zipfile_serialization=False)
    layer = "blocks.0.self_attn.q"
    halves = {f"{layer}.lora_A.weight": torch.ones(4, 48), f"{layer}.lora_B.weight": torch.ones(48, 4)}
    save_file(halves, folder / "lora.safetensors")
    torch.save({"generator_lora": halves}, folder / "lora.pt")
    (folder / "latents").mkdir()
    torch.save(torch.ones(9, *LATENT), folder / "latents" / "latent_000000.pt")
    write_config(folder / "ae.yaml", {"latent_dim": 8, "hidden_dims": [16], "epochs": 3})
    return folder


def generator(path: Path) -> dict:
    return load_generator(path, "miniature", path.parents[1] / "wan_models" / "miniature").state_dict()


def encoder(path: Path) -> dict:
    return load_encoder(path, latent_shape=LATENT).state_dict()


def lora(path: Path) -> dict:
    layers = read_loras(meta_model(PARAMS), [(path, 1.0)], 4, 4.0)
    return {name: parts[0].up for name, parts in layers.items()}


def latents(path: Path) -> dict:
    (file,) = scan(path.parent, LATENT, seq_len=4).files
    return {"latents": torch.load(file, weights_only=True)}


def vae(path: Path) -> dict:
    return read_vae(path.parent)[1]


def text_encoder(path: Path) -> dict:
    return read_umt5(path.parent)[1]


def tokenizer(path: Path) -> dict:
    load_tokenizer(path.parent)
    return {}


def run(path: Path) -> dict:
    load_config(path)
    return {}


def training(path: Path) -> dict:
    load_train_settings(path)
    return {}


def prompts(path: Path) -> dict:
    read_prompts(path)
    return {}


MODEL = "wan_models/miniature"
FORMS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "checkpoints/miniature.safetensors": generator,
    "checkpoints/miniature.pt": generator,
    "checkpoints/old.pt": generator,
    "checkpoints/miniature_ae.pt": encoder,
    "lora.safetensors": lora,
    "lora.pt": lora,
    "latents/latent_000000.pt": latents,
    f"{MODEL}/vae/config.json": vae,
    f"{MODEL}/vae/diffusion_pytorch_model.safetensors": vae,
    f"{MODEL}/text_encoder/config.json": text_encoder,
    f"{MODEL}/text_encoder/model.safetensors": text_encoder,
    f"{MODEL}/tokenizer/tokenizer.json": tokenizer,
    f"{MODEL}/tokenizer/tokenizer_config.json": tokenizer,
    "run.yaml": run,
    "ae.yaml": training,
    "prompts.txt": prompts,
}


@pytest.mark.parametrize("file", FORMS)
def test_a_flipped_bit_is_refused_in_one_line_or_changes_numbers_alone(file, family, tmp_path):
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    read = FORMS[file]
    path = tmp_path / file
    content = path.read_bytes()
    shapes = {name: tensor.shape for name, tensor in read(path).items()}
    for number in range(PLACES):
        # Evenly over the file, each of the eight bits in turn.
        place = number * (len(content) - 1) // (PLACES - 1)
        flipped = bytearray(content)
        flipped[place] ^= 1 << number % 8
        path.write_bytes(flipped)
        try:
            found = read(path)
        except UserError as error:
            assert "\n" not in str(error), place
        else:
            assert {name: tensor.shape for name, tensor in found.items()} == shapes, place


@pytest.mark.parametrize("file", ["checkpoints/miniature.pt", "checkpoints/miniature_ae.pt", "lora.pt"])
def test_a_flipped_bit_of_an_archive_is_never_taken_for_a_number(file, family, tmp_path):
    """Each part of it has a checksum. Here all are small, and small parts are compared."""
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    path = tmp_path / file
    content = path.read_bytes()
    whole = {name: tensor.clone() for name, tensor in FORMS[file](path).items()}
    for number in range(PLACES):
        place = number * (len(content) - 1) // (PLACES - 1)
        flipped = bytearray(content)
        flipped[place] ^= 16
        path.write_bytes(flipped)
        try:
            found = FORMS[file](path)
        except UserError:
            continue
        for name, tensor in found.items():  # the bit was in the padding between parts
            assert torch.equal(tensor, whole[name]), place
