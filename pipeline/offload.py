"""How a model's weights are kept: in fewer bits, or in host memory while they are not used."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:  # late below: the names of the forms are settings, which are read before torch is
    import torch
    from torch import nn

    from wan.model import CausalWanModel
    from wan.text_encoder import TextEncoder

KEPT = ("norm",)  # small and sensitive: never in fewer bits


def cast(blocks: "nn.Module", dtype: "torch.dtype") -> None:
    """FP8 without scales, cast back layer by layer (diffusers' layerwise casting)."""
    import torch
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(blocks, torch.float8_e4m3fn, dtype, skip_modules_pattern=KEPT)


def _with_torchao(blocks: "nn.Module", dtype: "torch.dtype", config: str) -> None:
    """FP8 or INT8 with scales through torchao; computes in `dtype`."""
    quantization = _torchao()
    quantization.quantize_(blocks, getattr(quantization, config)())


def _products(blocks: "nn.Module", dtype: "torch.dtype") -> None:
    from wan.fp8 import multiply_in_fp8

    multiply_in_fp8(blocks)


# Name -> how the linears of the blocks are kept; None leaves them as they are.
QUANTIZATION: dict[str, Callable[["nn.Module", "torch.dtype"], None] | None] = {
    "same": None,
    "cast_fp8": cast,
    "fp8": partial(_with_torchao, config="Float8WeightOnlyConfig"),
    "fp8_products": _products,
    "int8": partial(_with_torchao, config="Int8WeightOnlyConfig"),
}


def require_quantization(form: str, device: "torch.device") -> None:
    """Refuse a form whose package is not installed, or that the GPU cannot compute with."""
    import torch

    if form in ("fp8", "int8"):
        _torchao()
    if form == "fp8_products" and device.type == "cuda":
        from wan.fp8 import CAPABILITY

        if torch.cuda.get_device_capability(device) < CAPABILITY:
            raise UserError(
                f"weights fp8_products need a GPU of compute capability {'.'.join(map(str, CAPABILITY))}, as Ada and "
                f"Hopper have; use weights: fp8 on {torch.cuda.get_device_name(device)}"
            )


def quantize(model: "CausalWanModel", form: str) -> None:
    """Keep the weights of the blocks in a form of `QUANTIZATION`; everything else stays as it is."""
    if QUANTIZATION[form]:
        QUANTIZATION[form](model.blocks, model.dtype)


def offload_transformer(model: "CausalWanModel", device: "torch.device") -> None:
    """The blocks' weights stay in host memory and visit `device` in turn, copied ahead; all others move there."""
    from pipeline.weight_stream import WeightStream

    for name, part in model.named_children():
        if name != "blocks":
            part.to(device)
    for block in model.blocks:
        block.self_attn.fused = None  # each weight moves
    stream = WeightStream(model.blocks, device, pin=device.type == "cuda")
    for number, block in enumerate(model.blocks):  # `encode_text` calls this layer first, without its block
        block.cross_attn.k.register_forward_pre_hook(stream.entering(number))


def offload_text_encoder(encoder: "TextEncoder", device: "torch.device") -> None:
    """The same for a text encoder; its embedding table, the largest weight, is read where it lies."""
    from pipeline.weight_stream import WeightStream

    stack = encoder.model.encoder
    WeightStream(stack.block, device, pin=False)  # a few prompts are encoded before pinning would be done
    stack.final_layer_norm.to(device)
    encoder.device = device


def _torchao() -> ModuleType:
    try:
        from torchao import quantization  # an extra: `pip install torchao`
    except ImportError as error:
        raise UserError(
            "weights fp8 and int8 need torchao; pip install torchao, or use weights: cast_fp8 or same"
        ) from error
    return quantization
