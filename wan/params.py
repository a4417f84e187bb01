"""Sizes of a Wan transformer and of its latents: by name, from a `config.json`, or read off a checkpoint's shapes."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LatentFormat:
    """What an autoencoder makes of a video; the defaults are those of Wan2.1.

    Args:
        channels: of a latent.
        spatial: pixels to a latent pixel, along height and along width.
        temporal: frames to a latent frame; a video's first latent frame stands for one frame alone.
    """

    channels: int = 16
    spatial: int = 8
    temporal: int = 4

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[C, h, w] of a latent frame of `height` x `width` pixels."""
        return self.channels, height // self.spatial, width // self.spatial

    def pixel_frames(self, latents: int) -> int:
        """Frames of a video of so many latent frames."""
        return 1 + self.temporal * (latents - 1)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a video of so many frames; frames beyond the last whole latent frame do not count."""
        return 1 + (frames - 1) // self.temporal

    def block_frames(self, latents: int, first: bool = False) -> int:
        """Frames that a block of latent frames adds to its video; the `first` block holds the video's first frame."""
        return self.pixel_frames(latents) if first else self.temporal * latents


def latent_format(config: Mapping) -> LatentFormat:
    """The format of the latents of diffusers' AutoencoderKLWan, from its configuration.

    It follows from the layers: `scale_factor_spatial` and `scale_factor_temporal` only repeat it, and are
    missing from older files.

    Args:
        config: of a `vae/config.json` or of a loaded model; what is missing is as in Wan2.1.
    """
    halvings = len(config.get("dim_mult", (1, 2, 4, 4))) - 1
    temporal_halvings = sum(config.get("temperal_downsample", (False, True, True)))  # diffusers' spelling
    patch = config.get("patch_size") or 1
    channels = config.get("z_dim", LatentFormat.channels)
    return LatentFormat(channels, spatial=patch * 2**halvings, temporal=2**temporal_halvings)


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
    in_dim: int = LatentFormat.channels
    out_dim: int = LatentFormat.channels
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
    "Wan2.2-TI2V-5B": WanParams(dim=3072, ffn_dim=14336, num_heads=24, in_dim=48, out_dim=48),
}

KINDS = ("t2v", "ti2v")  # `model_type` of what runs here: from text, and from text with a picture as first frame
DIFFUSERS_NAMES = {"num_attention_heads": "num_heads", "in_channels": "in_dim", "out_channels": "out_dim"}
UNSHAPED = ("num_heads", "text_len", "eps")  # sizes that leave no trace in a weight's shape


def find_params(model_name: str, folder: Path, shapes: Shapes, source: str, own: Path | None = None) -> WanParams:
    """Sizes of a checkpoint for `model_name`, which its shapes must agree with.

    They are said by `own`, else by the model folder's `config.json`, else by the table of names. What
    none of them says is read off the shapes.

    Args:
        own: a folder with the `config.json` of the checkpoint itself.
        source: the config key and file, for messages.

    Raises:
        UserError: the checkpoint is of another size, or nothing tells its number of heads.
    """
    found = sizes_in_shapes(shapes, source)
    for place in (own, folder):
        tree = read_config(place) if place else {}
        if tree:
            where = str(place / "config.json")
            said = {"text_len": read_text_len(folder)} | sizes_in_config(tree, where)
            break
    else:
        where = f"model_name {model_name}"
        said = SIZES[model_name].to_dict() if model_name in SIZES else {}
    differ = []
    for name, size in found.items():
        if name in said and said[name] != size:
            differ.append(name)
    if differ:
        raise UserError(_other_size(differ, found, said, source, where, model_name))
    return _complete(found | said, source, folder)


def params_from_shapes(shapes: Shapes, source: str) -> WanParams:
    """The sizes of a checkpoint of which nothing is known but its tensors' shapes; see `find_params`."""
    return _complete(sizes_in_shapes(shapes, source), source, None)


def params_from_dict(tree: Mapping, source: str) -> WanParams:
    """`WanParams` from a `config.json` of Wan, of diffusers' WanTransformer3DModel or ours; the rest by default.

    Raises:
        UserError: the model is no text-to-video Wan of this family, or a size is none.
    """
    return WanParams(**sizes_in_config(tree, source))


def sizes_in_config(tree: Mapping, source: str) -> dict:
    """The sizes that a `config.json` says, under the names of `WanParams`; foreign keys are ignored."""
    kind = tree.get("model_type", KINDS[0])
    if tree.get("image_dim") or tree.get("added_kv_proj_dim"):
        kind = "i2v"
    if kind not in KINDS:
        raise UserError(f"{source} describes a '{kind}' model; only text-to-video ({', '.join(KINDS)}) runs here")
    for flag in ("qk_norm", "cross_attn_norm"):
        if not tree.get(flag, True):
            raise UserError(f"{source} has {flag} off; every Wan checkpoint has it on")
    values = {DIFFUSERS_NAMES.get(key, key): value for key, value in tree.items()}
    if "attention_head_dim" in tree:
        heads, head_dim = values.get("num_heads"), tree["attention_head_dim"]
        _require_size("num_attention_heads", heads, source)
        _require_size("attention_head_dim", head_dim, source)
        values["dim"] = heads * head_dim
    known = {}
    for name in WanParams().to_dict():
        if name not in values:
            continue
        _require_size(name, values[name], source)
        known[name] = tuple(values[name]) if name == "patch_size" else values[name]
    return known


def sizes_in_shapes(shapes: Shapes, source: str) -> dict:
    """The sizes that a checkpoint's tensors show, under the names of `WanParams`: all but `UNSHAPED`.

    Raises:
        UserError: the tensors are not those of a Wan transformer.
    """
    try:
        dim, in_dim, *patch = shapes["patch_embedding.weight"]
        layers = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks."))
        return {
            "dim": dim,
            "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
            "num_layers": layers,
            "freq_dim": shapes["time_embedding.0.weight"][1],
            "text_dim": shapes["text_embedding.0.weight"][1],
            "in_dim": in_dim,
            "out_dim": shapes["head.head.weight"][0] // math.prod(patch),
            "patch_size": tuple(patch),
        }
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{source} holds no Wan transformer: {error} is missing among its {len(shapes)} tensors"
        ) from error


def read_text_len(folder: Path) -> int:
    """Tokens that prompts are padded to, from a model folder's `config.json`; Wan's own where it does not say."""
    text_len = read_config(folder).get("text_len", WanParams.text_len)
    _require_size("text_len", text_len, str(folder / "config.json"))
    return text_len


def read_config(folder: Path) -> dict:
    """A folder's `config.json`; empty where there is none.

    Raises:
        UserError: it cannot be read or is no JSON object.
    """
    config = folder / "config.json"
    if not config.is_file():
        return {}
    try:
        tree = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{config} is not valid JSON ({error}); download it again") from error
    if not isinstance(tree, dict):
        raise UserError(f"{config} is no JSON object but a {type(tree).__name__}; download it again")
    return tree


def _complete(sizes: dict, source: str, folder: Path | None) -> WanParams:
    """`WanParams` of sizes among which the number of heads may be missing.

    Shapes do not show it. A published model is known by its width; of any other a guess might be wrong,
    and a wrong number of heads gives a wrong video without a word.
    """
    if "num_heads" not in sizes:
        heads = {size.dim: size.num_heads for size in SIZES.values()}
        if sizes["dim"] not in heads:
            where = f"{folder / 'config.json'} does not" if folder else "no config.json does"
            raise UserError(
                f"{source} has a width (dim) of {sizes['dim']}, which is no published model's, and {where} say "
                "its num_heads; put the config.json that belongs to it there"
            )
        sizes = sizes | {"num_heads": heads[sizes["dim"]]}
    params = WanParams(**sizes)
    if params.dim % params.num_heads or params.head_dim % 2:
        raise UserError(
            f"{source}: a width (dim) of {params.dim} does not divide into num_heads {params.num_heads} of an even "
            "size; put the config.json that belongs to it in the model folder"
        )
    return params


def _require_size(name: str, value: object, source: str) -> None:
    """Refuse what is not a size: a positive number, whole but for `eps`; of a patch three of them."""
    numbers = [value]
    if name == "patch_size":
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise UserError(f"{source} has patch_size {json.dumps(value)}, not three numbers; download it again")
        numbers = value
    kind = (int, float) if name == "eps" else int
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, kind) or not 0 < number < math.inf:
            raise UserError(f"{source} has {name} {json.dumps(value)}, which is no size; download it again")


def _other_size(differ: list[str], found: dict, said: dict, source: str, where: str, model_name: str) -> str:
    """The line that says how a checkpoint's sizes differ from what was said, and the model they belong to."""
    owner = "the model_name that it belongs to"
    for name, size in SIZES.items():
        if size.dim == found["dim"] and name != model_name:
            owner = f"model_name: {name}"
    has = ", ".join(f"{name} {found[name]}" for name in differ)
    says = ", ".join(str(said[name]) for name in differ)
    return f"{source} is of another size: it has {has} where {where} says {says}; set {owner}"
