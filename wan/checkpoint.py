"""The causal transformer from disk: every published form of a generator checkpoint and of its LoRA."""

from collections.abc import Mapping
from pathlib import Path

import torch

from utils.errors import UserError
from utils.tensors import check_fit, fill, read_tensors
from wan.model import CausalWanModel
from wan.params import find_params


def load_generator(
    path: str | Path,
    model_name: str,
    folder: Path,
    use_ema: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CausalWanModel:
    """The transformer that a generator checkpoint fits, in evaluation mode and frozen.

    Args:
        path: the checkpoint.
        model_name, folder: the family's name and folder, for its sizes; see `wan.params.find_params`.
        use_ema: take the EMA weights.
    """
    source = f"generator_ckpt {path}"
    tensors = generator_tensors(read_tensors(path, "generator_ckpt"), source, use_ema)
    params = find_params(model_name, folder, {key: tuple(value.shape) for key, value in tensors.items()}, source)
    with torch.device("meta"):
        model = CausalWanModel(**params.to_dict())
    fill(model, tensors, source, device, dtype)
    return model


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
    tensors = content[chosen[0]] if chosen else content
    return {key.replace("_fsdp_wrapped_module.", "").removeprefix("model."): value for key, value in tensors.items()}


def add_lora(model: CausalWanModel, path: str | Path, rank: int, alpha: float, merge: bool = True) -> None:
    """Add a LoRA to every linear layer inside the transformer blocks.

    Args:
        path: `{"generator_lora": state}`, the bare peft state, or the latter as `.safetensors`.
        rank, alpha: as it was trained; the file's rank must agree.
        merge: fold it into the weights (no cost per forward) or keep it beside them.
    """
    from peft import LoraConfig, set_peft_model_state_dict  # slow to import, needed only here

    prefix = "base_model.model."
    content = read_tensors(path, "lora_ckpt")
    tensors = content.get("generator_lora", content)
    ranks = {value.shape[0] for key, value in tensors.items() if key.endswith("lora_A.weight")}
    if ranks != {rank}:
        found = f"rank {min(ranks)}" if ranks else "no LoRA weights"
        raise UserError(f"lora_ckpt {path} has {found} where adapter.rank is {rank}; make them agree")
    linears = {
        name: module
        for name, module in model.named_modules()
        if name.startswith("blocks.") and isinstance(module, torch.nn.Linear)
    }
    expected = {}
    for name, linear in linears.items():
        expected[f"{prefix}{name}.lora_A.weight"] = (rank, linear.in_features)
        expected[f"{prefix}{name}.lora_B.weight"] = (linear.out_features, rank)
    check_fit(expected, tensors, f"lora_ckpt {path}")
    model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(linears)))
    set_peft_model_state_dict(model, {key.removeprefix(prefix): value for key, value in tensors.items()})
    model.requires_grad_(False)
    if merge:
        model.fuse_lora()
        model.unload_lora()
    else:
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.data = weight.data.to(model.dtype)
