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
    """Weights stay in host memory; each layer visits `device` for its call, copied ahead on a stream of its own.

    By leaves, not by blocks: `encode_text` calls some of a block's layers without the block.
    """
    streams = device.type == "cuda"
    model.enable_group_offload(device, offload_type="leaf_level", use_stream=streams, non_blocking=streams)


def offload_text_encoder(encoder: "nn.Module", device: "torch.device") -> None:
    """The same for a transformers encoder, block by block; its embedding table visits `device` as a whole."""
    from diffusers.hooks import apply_group_offloading

    streams = device.type == "cuda"
    apply_group_offloading(
        encoder,
        device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=streams,
        non_blocking=streams,
        low_cpu_mem_usage=streams,  # pins a block when it is due: all at once would take twice the host memory
    )


def _torchao() -> ModuleType:
    try:
        from torchao import quantization  # an extra: `pip install torchao`
    except ImportError as error:
        raise UserError(
            "weights fp8 and int8 need torchao; pip install torchao, or use weights: cast_fp8 or same"
        ) from error
    return quantization
