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
DIFFUSERS_NAMES = {"num_attention_heads": "num_heads", "in_channels": "in_dim", "out_channels": "out_dim"}
UNSHAPED = ("num_heads", "text_len", "eps")  # sizes that leave no trace in a weight's shape


def params_from_dict(tree: Mapping, source: str) -> WanParams:
    """`WanParams` from a `config.json` of Wan, of diffusers' WanTransformer3DModel or ours; foreign keys are ignored.

    Raises:
        UserError: the model is no text-to-video Wan of this family.
    """
    kind = "i2v" if tree.get("image_dim") or tree.get("added_kv_proj_dim") else tree.get("model_type", "t2v")
    if kind != "t2v":
        raise UserError(f"{source} describes a '{kind}' model; only text-to-video ('t2v') runs here")
    for flag in ("qk_norm", "cross_attn_norm"):
        if not tree.get(flag, True):
            raise UserError(f"{source} has {flag} off; every Wan2.1 checkpoint has it on")
    known = WanParams().to_dict()
    values = {DIFFUSERS_NAMES.get(key, key): value for key, value in tree.items()}
    if "attention_head_dim" in tree:
        values["dim"] = tree["num_attention_heads"] * tree["attention_head_dim"]
    values = {key: value for key, value in values.items() if key in known}
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


def find_params(
    model_name: str, folder: Path, shapes: Mapping[str, tuple[int, ...]], source: str, own: Path | None = None
) -> WanParams:
    """Sizes of a checkpoint for `model_name`: from `own`, else the model folder's `config.json`, else the table of
    names; where none of them says, from the shapes, which must agree with them in any case.

    Args:
        own: a folder with the `config.json` of the checkpoint itself.
        source: the config key and file, for messages.

    Raises:
        UserError: the checkpoint is of another size.
    """
    for place in filter(None, (own, folder)):
        if tree := _read_config(place):
            # `text_dim` and `text_len` are not in every `config.json`.
            text_dim = shapes.get("text_embedding.0.weight", (0, WanParams.text_dim))[1]
            tree = {"text_dim": text_dim, "text_len": read_text_len(folder), **tree}
            params, where = params_from_dict(tree, str(place / "config.json")), str(place / "config.json")
            break
    else:
        params, where = SIZES.get(model_name), f"model_name {model_name}"
    if params is None or "patch_embedding.weight" not in shapes:
        return params or params_from_shapes(shapes, source)
    found, said = params_from_shapes(shapes, source).to_dict(), params.to_dict()
    differ = [name for name in said if name not in UNSHAPED and said[name] != found[name]]
    if differ:
        name = next((name for name, size in SIZES.items() if size.dim == found["dim"]), None)
        raise UserError(
            f"{source} is of another size: it has {', '.join(f'{name} {found[name]}' for name in differ)} where "
            f"{where} says {', '.join(str(said[name]) for name in differ)}; "
            f"set {f'model_name: {name}' if name and name != model_name else 'the model_name that it belongs to'}"
        )
    return params


def _read_config(folder: Path) -> dict:
    config = folder / "config.json"
    if not config.is_file():
        return {}
    try:
        return json.loads(config.read_text())
    except ValueError as error:
        raise UserError(f"{config} is not valid JSON ({error}); download it again") from error
