"""Reads the causal transformer from every published form of a generator checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from utils.errors import UserError
from utils.tensors import check_fit, fill, read_tensors, shapes_of
from wan.model import CausalWanModel
from wan.params import WanParams, find_params

WEIGHTS = ("generator", "model", "state_dict", "model_state_dict")  # what files keep their weights under
EMA_WEIGHTS = ("generator_ema", "ema", "ema_state_dict", "model_ema")
TRAINING = r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\."  # what training adds within names
PREFIXES = r"^(?:module\.|model\.|generator\.|diffusion_model\.|transformer\.)+"  # and in front of them
SCALED_FP8 = ("scaled_fp8", ".scale_weight", ".weight_scale")

# diffusers' names in WanTransformer3DModel -> Wan's own (diffusers' convert_wan_transformer_to_diffusers, reversed)
DIFFUSERS_NAMES = {
    r"^condition_embedder\.time_embedder\.linear_1\.": "time_embedding.0.",
    r"^condition_embedder\.time_embedder\.linear_2\.": "time_embedding.2.",
    r"^condition_embedder\.text_embedder\.linear_1\.": "text_embedding.0.",
    r"^condition_embedder\.text_embedder\.linear_2\.": "text_embedding.2.",
    r"^condition_embedder\.time_proj\.": "time_projection.1.",
    r"^scale_shift_table$": "head.modulation",
    r"^proj_out\.": "head.head.",
    r"\.scale_shift_table$": ".modulation",
    r"\.attn1\.": ".self_attn.",
    r"\.attn2\.": ".cross_attn.",
    r"\.to_([qkv])\.": r".\1.",
    r"\.to_out\.0\.": ".o.",
    r"\.ffn\.net\.0\.proj\.": ".ffn.0.",
    r"\.ffn\.net\.2\.": ".ffn.2.",
    r"\.norm2\.": ".norm3.",  # the only norm of a block that has weights
}

# A part of a name -> what a file that has it is
TELLTALES = {
    "lora_": "it is a LoRA; name it lora_ckpt, beside a generator_ckpt",
    "k_img.": "it is an image-to-video model; only text-to-video runs here",
    "vace_": "it is a VACE model; only plain text-to-video runs here",
    "pos_embedding.": "it is a text encoder",
    "decoder.": "it is an autoencoder",
}
FP8 = "it holds scaled FP8 weights; get the same model's file in bfloat16 or float16 in place of FP8"


def load_generator(
    path: str | Path,
    model_name: str,
    folder: Path,
    use_ema: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CausalWanModel:
    """The transformer that a generator checkpoint fits, in evaluation mode and frozen; see `read_generator`."""
    params, tensors = read_generator(path, model_name, folder, use_ema)
    model = meta_model(params)
    fill(model, tensors, f"generator_ckpt {path}", device, dtype)
    return model


def read_generator(
    path: str | Path, model_name: str, folder: Path, use_ema: bool = False
) -> tuple[WanParams, dict[str, torch.Tensor]]:
    """A generator checkpoint's sizes and its mapped tensors under Wan's own names, found to fit each other.

    Args:
        path: a file, a `.safetensors.index.json`, or a folder, Wan's own or of diffusers' WanTransformer3DModel.
        model_name, folder: the family's name and folder, for its sizes; see `wan.params.find_params`.
        use_ema: take the EMA weights.

    Raises:
        UserError: the file is missing, unreadable or not such a transformer; says what it seems to be.
    """
    path = Path(path)
    source = f"generator_ckpt {path}"
    tensors = generator_tensors(read_tensors(path, "generator_ckpt"), source, use_ema)
    cause = likely_cause(tensors)
    if "patch_embedding.weight" not in tensors:
        raise UserError(
            f"{source} does not fit: patch_embedding.weight is missing among its {len(tensors)} tensors; {cause}"
        )
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    params = find_params(model_name, folder, found, source, own=path if path.is_dir() else None)
    check_fit(shapes_of(meta_model(params)), tensors, source, cause)
    return params, tensors


def likely_cause(tensors: Mapping[str, torch.Tensor]) -> str:
    """Why a file does not fit, as far as its names tell."""
    for part, cause in TELLTALES.items():
        if any(part in key for key in tensors):
            return cause
    return "is it the right file for this model?"


def meta_model(params: WanParams) -> CausalWanModel:
    """A transformer that has sizes but no weights yet."""
    with torch.device("meta"):
        return CausalWanModel(**params.to_dict())


def generator_tensors(content: Mapping, source: str, use_ema: bool) -> dict[str, torch.Tensor]:
    """A generator's tensors under Wan's own names, whatever they are kept under and prefixed with.

    Published `.pt` files have them as `generator`, `generator_ema` or `model`, with the prefix `model.`,
    EMA ones also with `_fsdp_wrapped_module.`; Wan's `.safetensors` have bare names.

    Raises:
        UserError: there are none, or not those that `use_ema` asks for.
    """
    held = chosen_weights(content, source, use_ema)
    tensors = {}
    for key, value in held.items():
        if not isinstance(value, torch.Tensor):
            continue  # a step, a version, None
        name = clean_name(str(key))
        if name in tensors:
            raise UserError(f"{source} holds {name} twice, once as {key}; name a file of one model's weights")
        tensors[name] = value
    if not tensors:
        raise UserError(f"{source} holds no tensors but {_contents(content)}; name a file of weights")
    if any(part in key for key in tensors for part in SCALED_FP8):
        raise UserError(f"{source} does not fit: {FP8}")
    if "condition_embedder.time_proj.weight" in tensors:
        return _from_diffusers(tensors)
    return tensors


def chosen_weights(content: Mapping, source: str, use_ema: bool) -> Mapping:
    """The dictionary of weights inside a file's content, which may itself be it."""
    plain = [key for key in WEIGHTS if isinstance(content.get(key), Mapping)]
    ema = [key for key in EMA_WEIGHTS if isinstance(content.get(key), Mapping)]
    if use_ema and not ema:
        held = ", ".join(plain) or "bare ones"
        raise UserError(f"{source} has no EMA weights (it holds {held}); set use_ema: false")
    if ema and not plain and not use_ema:
        raise UserError(f"{source} holds only EMA weights; set use_ema: true")
    if use_ema:
        return content[ema[0]]
    if plain:
        inner = content[plain[0]]
        # A trainer's state may hold the weights one level deeper, as state_dict: {generator: ...}.
        if any(isinstance(inner.get(key), Mapping) for key in (*WEIGHTS, *EMA_WEIGHTS)):
            return chosen_weights(inner, source, use_ema)
        return inner
    if "generator_lora" in content:
        raise UserError(f"{source} does not fit: {TELLTALES['lora_']}")
    return content


def clean_name(key: str) -> str:
    """A weight's name without what training and other programs put into it and in front of it."""
    return re.sub(PREFIXES, "", re.sub(TRAINING, "", key))


def _contents(content: Mapping) -> str:
    if not content:
        return "nothing"
    names = [str(key)[:40] for key in list(content)[:3]]
    return ", ".join(names) + (" and more" if len(content) > len(names) else "")


def _from_diffusers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {wan_name(key): value for key, value in tensors.items()}


def wan_name(key: str) -> str:
    """Wan's name for a weight that has diffusers'."""
    for theirs, ours in DIFFUSERS_NAMES.items():
        key = re.sub(theirs, ours, key)
    return key
