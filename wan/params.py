"""Sizes of the Wan2.1 family: by name, from a `config.json`, or read off a checkpoint's shapes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.errors import UserError


@dataclass(frozen=True)
class WanParams:
    """Sizes of one causal Wan transformer; the defaults are those of Wan2.1-T2V-1.3B."""

    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    in_dim: int = 16
    out_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame of `height` x `width` latent pixels."""
        _, ph, pw = self.patch_size
        return (height // ph) * (width // pw)

    def to_dict(self) -> dict:
        return asdict(self)


SIZES = {
    "Wan2.1-T2V-1.3B": WanParams(),
    "Wan2.1-T2V-14B": WanParams(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
}

WAN_HEAD_DIM = 128  # every published Wan model; shapes alone do not tell the number of heads


def params_from_dict(tree: Mapping, source: str) -> WanParams:
    """`WanParams` from a `config.json` of Wan, diffusers style or ours; foreign keys are ignored.

    Raises:
        UserError: the model is no text-to-video Wan of this family.
    """
    if tree.get("model_type", "t2v") != "t2v":
        raise UserError(f"{source} describes a '{tree['model_type']}' model; only text-to-video ('t2v') runs here")
    for flag in ("qk_norm", "cross_attn_norm"):
        if not tree.get(flag, True):
            raise UserError(f"{source} has {flag} off; every Wan2.1 checkpoint has it on")
    known = WanParams().to_dict()
    values = {key: value for key, value in tree.items() if key in known}
    if "patch_size" in values:
        values["patch_size"] = tuple(values["patch_size"])
    return WanParams(**values)


def params_from_shapes(shapes: Mapping[str, tuple[int, ...]], source: str) -> WanParams:
    """Read the sizes off a checkpoint's tensor shapes (head size 128, as in every published Wan).

    Raises:
        UserError: the tensors are not those of a Wan transformer.
    """
    try:
        dim, in_dim, *patch = shapes["patch_embedding.weight"]
        layers = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks."))
        return WanParams(
            dim=dim,
            ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
            num_heads=max(dim // WAN_HEAD_DIM, 1),
            num_layers=layers,
            freq_dim=shapes["time_embedding.0.weight"][1],
            text_dim=shapes["text_embedding.0.weight"][1],
            in_dim=in_dim,
            out_dim=shapes["head.head.weight"][0] // (patch[0] * patch[1] * patch[2]),
            patch_size=tuple(patch),
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{source} holds no Wan transformer: {error} is missing among its {len(shapes)} tensors"
        ) from error


def read_text_len(folder: Path) -> int:
    """Tokens that prompts are padded to, from a model folder's `config.json`; 512 where it does not say."""
    return _read_config(folder).get("text_len", WanParams.text_len)


def find_params(model_name: str, folder: Path, shapes: Mapping[str, tuple[int, ...]], source: str) -> WanParams:
    """Sizes for `model_name`: its folder's `config.json`, else the table of names, else the shapes.

    `text_dim` and `text_len` are not in every `config.json`; the former comes from the shapes.
    """
    tree = _read_config(folder)
    if tree:
        text_dim = shapes.get("text_embedding.0.weight", (0, WanParams.text_dim))[1]
        return params_from_dict({"text_dim": text_dim, **tree}, str(folder / "config.json"))
    return SIZES.get(model_name) or params_from_shapes(shapes, source)


def _read_config(folder: Path) -> dict:
    config = folder / "config.json"
    if not config.is_file():
        return {}
    try:
        return json.loads(config.read_text())
    except ValueError as error:
        raise UserError(f"{config} is not valid JSON ({error}); download it again") from error
