"""Random weights in the published files' layout, to measure with: `python -m tests.make_random_weights OUT [options]`.

Writes OUT/wan_models and OUT/checkpoints as `download.sh` would; a run finds them with
`model_root=OUT/wan_models generator_ckpt=OUT/checkpoints/causal_forcing.pt` and so on, as printed at the end.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file

from ae.model import LatentAEParams
from pipeline.backbones import WAN_FOLDER
from tests.miniature import make_tokenizer
from utils.command_line import Parser, folder_name, whole_number
from utils.errors import run
from utils.files import require_writable, write_json
from utils.tensors import save_tensors, shapes_of
from wan.checkpoint import meta_model
from wan.params import SIZES, WanParams

GOLDENS = Path(__file__).parent / "goldens"
PROMPTS = "a red house\na blue tree at night\n"
PIECES = {  # what --only names -> about its size at 1.3b
    "generator": "2.8 GB, 28 GB at 14b",
    "text_encoder": "11.4 GB, all of it in memory while it is made",
    "vae": "0.5 GB",
    "ae": "20 MB",
}
Shapes = Mapping[str, tuple[int, ...]]


def main() -> None:
    parser = Parser(prog="python -m tests.make_random_weights", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=folder_name)
    parser.add_argument("--size", choices=["1.3b", "14b", "tiny"], default="1.3b")
    pieces = ", ".join(f"{name} ({size})" for name, size in PIECES.items())
    parser.add_argument("--only", nargs="+", choices=PIECES, default=list(PIECES), help=f"some of {pieces}")
    parser.add_argument("--height", type=whole_number(8, 16384), default=480)
    parser.add_argument("--width", type=whole_number(8, 16384), default=832)
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0)
    arguments = parser.parse_args()
    require_writable(arguments.out)
    make(arguments.out, arguments.size, arguments.only, arguments.height, arguments.width, arguments.seed)
    checkpoints = arguments.out / "checkpoints"
    print(
        f"inference.sh takes them with: model_root={arguments.out / 'wan_models'} "
        f"generator_ckpt={checkpoints / 'causal_forcing.pt'} data_path={checkpoints / 'moviegenbench_128_refined.txt'} "
        f"model_kwargs.ae_ckpt={checkpoints / 'ae_latent_mem.pt'}"
    )


def make(root: Path, size: str, pieces: list[str], height: int, width: int, seed: int = 0) -> None:
    """Write some of `PIECES`, and in any case the small files."""
    folder, checkpoints = root / WAN_FOLDER, root / "checkpoints"
    fill = filler(seed)
    params, text, vae = sizes_of(size)
    writers: dict[str, Callable[[], None]] = {
        "generator": lambda: save_tensors(
            checkpoints / "causal_forcing.pt", {"generator": fill(prefixed(shapes_of(meta_model(params))))}
        ),
        "text_encoder": lambda: save_tensors(folder / "models_t5_umt5-xxl-enc-bf16.pth", fill(text)),
        "vae": lambda: save_tensors(folder / "Wan2.1_VAE.pth", fill(vae, torch.float32)),
        "ae": lambda: save_tensors(checkpoints / "ae_latent_mem.pt", encoder(fill, height // 8, width // 8)),
    }
    for piece in pieces:
        writers[piece]()
    write_json(folder / "config.json", {"model_type": "t2v", **params.to_dict()})
    make_tokenizer().save_pretrained(folder / "google" / "umt5-xxl")
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "moviegenbench_128_refined.txt").write_text(PROMPTS)


def sizes_of(size: str) -> tuple[WanParams, Shapes, Shapes]:
    """The transformer's sizes, and the shapes of text encoder and VAE that belong to it."""
    if size == "tiny":
        t5 = load_file(GOLDENS / "t5.safetensors")
        text = {key[2:]: tuple(value.shape) for key, value in t5.items() if key.startswith("w.")}
        vae = {key: tuple(value.shape) for key, value in load_file(GOLDENS / "vae_weights.safetensors").items()}
        text_dim = text["norm.weight"][0]
        return WanParams(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=text_dim, text_len=16), text, vae
    text, vae = (
        {key: tuple(shape) for key, shape in json.loads((GOLDENS / f"{name}_keys.json").read_text())}
        for name in ("umt5_xxl_encoder", "vae")
    )
    return SIZES[f"Wan2.1-T2V-{size.upper()}"], text, vae


def filler(seed: int) -> Callable[..., dict[str, torch.Tensor]]:
    """Shapes to random weights: norms near one, biases small, the rest of a size that keeps activations' own."""
    pool = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed))

    def fill(shapes: Shapes, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
        return {key: draw(key, torch.Size(shape), dtype) for key, shape in shapes.items()}

    def draw(key: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        gain = key.endswith("gamma") or ("norm" in key and key.endswith("weight"))
        spread = shape[1:].numel() ** -0.5 if len(shape) > 1 and not gain and "modulation" not in key else 0.02
        tensor, done = torch.empty(shape.numel(), dtype=dtype), 0
        while done < len(tensor):
            piece = tensor[done : done + len(pool)]
            piece.copy_(pool[: len(piece)] * spread + gain)
            done += len(piece)
        return tensor.view(shape)

    return fill


def prefixed(shapes: Shapes) -> Shapes:
    return {f"model.{key}": shape for key, shape in shapes.items()}


def encoder(fill: Callable[..., dict[str, torch.Tensor]], height: int, width: int) -> dict:
    """A retrieval encoder's checkpoint for latents of that size."""
    from ae.model import LatentAE

    params = LatentAEParams(spatial_h=height, spatial_w=width)
    with torch.device("meta"):
        shapes = shapes_of(LatentAE(params))
    return {"model": fill(shapes, torch.float32), "config": asdict(params), "epoch": 0}


if __name__ == "__main__":
    run(main)
