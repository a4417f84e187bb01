"""The causal transformer from disk: every published form of a generator checkpoint and of its LoRA."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from utils.errors import UserError
from utils.tensors import check_fit, fill, read_tensors, shapes_of
from wan.model import CausalWanModel
from wan.params import WanParams, find_params

WRAPPERS = r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\."  # what training adds to names

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
    path, source = Path(path), f"generator_ckpt {path}"
    tensors = generator_tensors(read_tensors(path, "generator_ckpt"), source, use_ema)
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    params = find_params(model_name, folder, found, source, own=path if path.is_dir() else None)
    telltale = next((what for part, what in TELLTALES.items() if any(part in key for key in tensors)), None)
    check_fit(shapes_of(meta_model(params)), tensors, source, *filter(None, [telltale]))
    return params, tensors


def meta_model(params: WanParams) -> CausalWanModel:
    """A transformer that has sizes but no weights yet."""
    with torch.device("meta"):
        return CausalWanModel(**params.to_dict())


def generator_tensors(content: Mapping, source: str, use_ema: bool) -> dict[str, torch.Tensor]:
    """A generator's tensors under Wan's own names.

    Published `.pt` files wrap them as `generator`, `generator_ema` or `model`, with the prefix
    `model.`, EMA ones also with `_fsdp_wrapped_module.`; Wan's `.safetensors` have bare names.
    """
    wrappers = [key for key in ("generator", "model", "generator_ema") if isinstance(content.get(key), Mapping)]
    chosen = [key for key in wrappers if (key == "generator_ema") == use_ema]
    if use_ema and not chosen:
        raise UserError(
            f"{source} has no EMA weights (it holds {', '.join(wrappers) or 'bare ones'}); set use_ema: false"
        )
    if wrappers and not chosen:
        raise UserError(f"{source} holds only EMA weights; set use_ema: true")
    if not wrappers and "generator_lora" in content:
        raise UserError(f"{source} does not fit: {TELLTALES['lora_']}")
    tensors = content[chosen[0]] if chosen else content
    tensors = {re.sub(WRAPPERS, "", key).removeprefix("model."): value for key, value in tensors.items()}
    return _from_diffusers(tensors) if "condition_embedder.time_proj.weight" in tensors else tensors


def add_lora(model: CausalWanModel, path: str | Path, rank: int, alpha: float, merge: bool = True) -> None:
    """Add a LoRA to every linear layer inside the transformer blocks; see `read_lora`.

    Args:
        alpha: as it was trained.
        merge: fold it into the weights (no cost per forward) or keep it beside them.
    """
    tensors = read_lora(path, rank, model)
    if merge:
        for name in _block_linears(model):
            weight = model.get_parameter(f"{name}.weight")
            a, b = (tensors[f"{name}.lora_{part}.weight"].to(weight.device, torch.float32) for part in "AB")
            weight.data = (weight.float() + (alpha / rank) * (b @ a)).to(weight.dtype)
        return
    from peft import LoraConfig, set_peft_model_state_dict  # slow to import, needed only here

    model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(_block_linears(model))))
    set_peft_model_state_dict(model, tensors)
    model.requires_grad_(False)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.to(model.dtype)


def read_lora(path: str | Path, rank: int, model: CausalWanModel) -> dict[str, torch.Tensor]:
    """A LoRA's mapped tensors, `<linear>.lora_{A,B}.weight`, found to fit the linears of the model's blocks.

    Args:
        path: `{"generator_lora": state}`, the bare peft state, or the latter as `.safetensors`.
        rank: as it was trained; the file's rank must agree.
        model: may be on the meta device.
    """
    source, content = f"lora_ckpt {path}", read_tensors(path, "lora_ckpt")
    tensors = {
        re.sub(WRAPPERS, "", key).removeprefix("base_model.model.").replace(".default.", "."): value
        for key, value in content.get("generator_lora", content).items()
    }
    ranks = sorted({value.shape[0] for key, value in tensors.items() if key.endswith("lora_A.weight")})
    if not ranks:
        raise UserError(f"{source} has no LoRA weights; a generator's own weights belong in generator_ckpt")
    if ranks != [rank]:
        raise UserError(
            f"{source} has rank {', '.join(map(str, ranks))} where adapter.rank is {rank}; "
            f"set adapter.rank: {ranks[0]}, and adapter.alpha as it was trained"
        )
    expected = {}
    for name, (outputs, inputs) in _block_linears(model).items():
        expected[f"{name}.lora_A.weight"], expected[f"{name}.lora_B.weight"] = (rank, inputs), (outputs, rank)
    check_fit(expected, tensors, source)
    return tensors


def _block_linears(model: CausalWanModel) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs) of every linear layer inside the blocks."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if name.startswith("blocks.") and isinstance(module, torch.nn.Linear)
    }


def _from_diffusers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, value in tensors.items():
        for theirs, ours in DIFFUSERS_NAMES.items():
            key = re.sub(theirs, ours, key)
        renamed[key] = value
    return renamed
