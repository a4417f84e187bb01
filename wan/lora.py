"""Reads LoRAs, under the names that common programs write, and adds them to the transformer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.errors import UserError
from utils.tensors import check_finite, read_tensors
from wan.checkpoint import clean_name, wan_name
from wan.model import CausalWanModel

# The two halves of a layer's LoRA as programs name them: peft and diffusers, kohya and musubi-tuner, early diffusers
PARTS = r"\.(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))(?:\.default)?(?:\.weight)?$"
ALPHA = r"\.alpha$"
FLAT = r"^lora_(?:unet|transformer)_"  # kohya's and musubi-tuner's names have underscores in place of dots
FLAT_DIFFUSERS = {  # diffusers' names so flattened -> Wan's
    r"_attn1_to_out_0$": "_self_attn_o",
    r"_attn2_to_out_0$": "_cross_attn_o",
    r"_attn1_to_([qkv])$": r"_self_attn_\1",
    r"_attn2_to_([qkv])$": r"_cross_attn_\1",
    r"_ffn_net_0_proj$": "_ffn_0",
    r"_ffn_net_2$": "_ffn_2",
}


@dataclass
class LowRank:
    """What a LoRA adds to one layer's weight: scale * up @ down."""

    down: torch.Tensor  # [rank, inputs]
    up: torch.Tensor  # [outputs, rank]
    scale: float


def add_loras(
    model: CausalWanModel,
    loras: Sequence[tuple[str | Path, float]],
    rank: int | None = None,
    alpha: float | None = None,
    merge: bool = True,
) -> None:
    """Add LoRAs to the linear layers of a transformer, one after the other; see `read_loras`.

    Args:
        merge: fold them into the weights (no cost per forward) or keep them beside the weights.
    """
    layers = read_loras(model, loras, rank, alpha)
    if merge:
        for name, parts in layers.items():
            weight = model.get_parameter(f"{name}.weight")
            total = weight.float()
            for part in parts:
                total = total + part.scale * (part.up.to(total) @ part.down.to(total))
            weight.data = total.to(weight.dtype)
    elif layers:
        _keep_beside(model, layers)


def read_loras(
    model: CausalWanModel,
    loras: Sequence[tuple[str | Path, float]],
    rank: int | None = None,
    alpha: float | None = None,
) -> dict[str, list[LowRank]]:
    """What LoRAs add to each of a model's layers; the strengths are in the scales.

    Args:
        model: may be on the meta device.
        loras: files, each with the strength it is to have (1: as trained).
        rank: as they were trained; a file without alpha must have it. None: any.
        alpha: as they were trained, for layers that come without an alpha of their own; a layer's LoRA is
            multiplied by alpha / its rank. None: by 1.

    Raises:
        UserError: a file is missing, no LoRA, of another model or rank, or holds NaN.
    """
    layers: dict[str, list[LowRank]] = {}
    for path, strength in loras:
        for name, part in read_lora(path, model, rank, alpha).items():
            part.scale *= strength
            layers.setdefault(name, []).append(part)
    return layers


def read_lora(
    path: str | Path, model: CausalWanModel, rank: int | None = None, alpha: float | None = None
) -> dict[str, LowRank]:
    """One LoRA by the name of the layer it is for, found to fit the model; see `read_loras`.

    Args:
        path: tensors under the names of peft, diffusers, ComfyUI, kohya's programs or musubi-tuner, bare
            or as `generator_lora` or `state_dict`; it may have some of the layers only.
    """
    source = f"lora_ckpt {path}"
    content = read_tensors(path, "lora_ckpt")
    for key in ("generator_lora", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    linears = linear_layers(model)
    halves = _sorted(content, linears, source)
    if not halves["down"]:
        raise UserError(f"{source} has no LoRA weights; a generator's own weights belong in generator_ckpt")
    _check(halves, linears, source)
    for half, tensors in halves.items():
        check_finite(tensors, f"{source} ({half})")
    ranks = {name: len(down) for name, down in halves["down"].items()}
    untold = {ranks[name] for name in ranks if name not in halves["alpha"]}
    if rank is not None and untold and rank not in untold:
        raise UserError(
            f"{source} has rank {', '.join(map(str, sorted(untold)))} where adapter.rank is {rank}; "
            f"set adapter.rank: {max(untold)}, and adapter.alpha as it was trained"
        )
    layers = {}
    for name, down in halves["down"].items():
        own_alpha = halves["alpha"].get(name)
        if own_alpha is not None:
            scale = own_alpha.item() / ranks[name]
        else:
            scale = 1.0 if alpha is None else alpha / ranks[name]
        layers[name] = LowRank(down, halves["up"][name], scale)
    return layers


def linear_layers(model: CausalWanModel) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs) of every linear layer."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            layers[name] = (module.out_features, module.in_features)
    return layers


def _sorted(content: Mapping, linears: Mapping, source: str) -> dict[str, dict[str, torch.Tensor]]:
    """A file's tensors as `down`, `up` and `alpha`, each by Wan's name of the layer."""
    flat = {name.replace(".", "_"): name for name in linears}
    halves: dict[str, dict[str, torch.Tensor]] = {"down": {}, "up": {}, "alpha": {}}
    foreign = []
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            continue
        key = str(key)
        part = re.search(PARTS, key)
        if part:
            half, layer = part.lastgroup, key[: part.start()]
        elif re.search(ALPHA, key):
            half, layer = "alpha", re.sub(ALPHA, "", key)
        else:
            foreign.append(key)
            continue
        halves[half][_layer_name(layer, flat)] = value
    if foreign and halves["down"]:
        raise UserError(
            f"{source} does not fit: {foreign[0]} (of {len(foreign)} such) is no part of a plain LoRA; "
            "get a LoRA that has only low-rank weights"
        )
    return halves


def _layer_name(layer: str, flat: Mapping[str, str]) -> str:
    """Wan's name of the layer that a file calls `layer`; as it is where there is no such layer."""
    if re.search(FLAT, layer):
        short = re.sub(FLAT, "", layer)
        for theirs, ours in FLAT_DIFFUSERS.items():
            short = re.sub(theirs, ours, short)
        return flat.get(short, layer)
    name = clean_name(layer.removeprefix("base_model."))
    return wan_name(f"{name}.").removesuffix(".")


def _check(halves: Mapping[str, Mapping[str, torch.Tensor]], linears: Mapping, source: str) -> None:
    """Refuse layers that the model lacks, halves without the other half, and other shapes."""
    for half in halves:
        for name in halves[half]:
            if name not in linears:
                raise UserError(
                    f"{source} does not fit: {name} is foreign, the model has no such linear layer; "
                    "it is a LoRA of another model"
                )
            if name not in halves["down"] or name not in halves["up"]:
                raise UserError(f"{source} does not fit: half of {name}'s LoRA is missing; get it again")
    for name, down in halves["down"].items():
        outputs, inputs = linears[name]
        up = halves["up"][name]
        fits = down.dim() == up.dim() == 2 and (up.shape[0], down.shape[1]) == (outputs, inputs)
        if not fits or down.shape[0] != up.shape[1] or not len(down):
            raise UserError(
                f"{source} does not fit: {name} has {list(up.shape)} @ {list(down.shape)} where the model has "
                f"{[outputs, inputs]}; it is a LoRA of a model of another size"
            )
        if not (down.dtype.is_floating_point and up.dtype.is_floating_point):
            raise UserError(f"{source} holds {name} in whole numbers; get the LoRA in bfloat16, float16 or float32")
        if name in halves["alpha"] and halves["alpha"][name].numel() != 1:
            raise UserError(f"{source} has {halves['alpha'][name].numel()} numbers as {name}'s alpha; get it again")


def _keep_beside(model: CausalWanModel, layers: Mapping[str, list[LowRank]]) -> None:
    """Let peft keep LoRAs beside the weights: one adapter, in which the LoRAs of a layer stand along its rank."""
    from peft import LoraConfig, set_peft_model_state_dict  # slow to import, needed only here

    tensors = {}
    ranks = {}
    for name, parts in layers.items():
        down = torch.cat([part.down.float() for part in parts], dim=0)
        up = torch.cat([part.up.float() * part.scale for part in parts], dim=1)
        tensors[f"{name}.lora_A.weight"] = down
        tensors[f"{name}.lora_B.weight"] = up
        ranks[name] = len(down)
    largest = max(ranks.values())
    config = LoraConfig(
        r=largest,
        lora_alpha=largest,  # as large as the rank: the scales are in `up` already
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules=list(layers),
    )
    model.add_adapter(config)
    set_peft_model_state_dict(model, tensors)
    model.requires_grad_(False)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.to(model.dtype)
