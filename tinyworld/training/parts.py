"""Which weights a training changes: parts of the transformer's blocks, single heads, or units that it did not have.

What a backbone can do already lies in all of its weights, and steps that teach something else wear it off. They do so
less where they change only heads that were hardly used, and units that are new.
"""

from collections.abc import Sequence

import torch
from torch import nn

from wan.linear import Linear
from wan.model import CausalWanModel

Mask = tuple[nn.Parameter, torch.Tensor]  # a weight, and where it is trained


def widen(model: CausalWanModel, units: int) -> None:
    """Give each feed-forward layer so many more hidden units, which add nothing to what it computes yet."""
    for block in model.blocks:
        first, _, last = block.ffn
        wider = Linear(first.in_features, first.out_features + units)
        back = Linear(last.in_features + units, last.out_features)
        with torch.no_grad():
            wider.weight[: first.out_features] = first.weight
            wider.bias[: first.out_features] = first.bias
            back.weight[:, : last.in_features] = last.weight
            back.weight[:, last.in_features :] = 0
            back.bias.copy_(last.bias)
        block.ffn[0], block.ffn[2] = wider.to(first.weight.device), back.to(last.weight.device)
    model.register_to_config(ffn_dim=model.config.ffn_dim + units)


def train_only(backbone: nn.Module, model: CausalWanModel, parts: Sequence[str]) -> None:
    """Train these parts of the model's blocks, and no other weights of the backbone."""
    backbone.requires_grad_(False)
    for block in model.blocks:
        for part in parts:
            getattr(block, part).requires_grad_(True)


def train_within(backbone: nn.Module, model: CausalWanModel, heads: Sequence[tuple[int, int]], units: int) -> None:
    """Train these heads (layer, head) and the last hidden units of the feed-forward layers, no other weights."""
    backbone.requires_grad_(False)
    for parameter, mask in _of_heads(model, heads) + _of_units(model, units):
        parameter.requires_grad_(True)
        parameter.register_hook(mask.mul)


def _of_heads(model: CausalWanModel, heads: Sequence[tuple[int, int]]) -> list[Mask]:
    size = model.params.head_dim
    masks = []
    for layer in sorted({layer for layer, _ in heads}):
        attention = model.blocks[layer].self_attn
        channels = torch.zeros(attention.q.in_features, device=attention.q.weight.device)
        for of_layer, head in heads:
            if of_layer == layer:
                channels[head * size : (head + 1) * size] = 1
        for linear in (attention.q, attention.k, attention.v):
            masks += [(linear.weight, channels[:, None]), (linear.bias, channels)]
        masks += [(attention.norm_q.weight, channels), (attention.norm_k.weight, channels)]
        masks.append((attention.o.weight, channels))
    return masks


def _of_units(model: CausalWanModel, units: int) -> list[Mask]:
    masks = []
    for block in model.blocks if units else ():
        first, _, last = block.ffn
        added = torch.zeros(first.out_features, device=first.weight.device)
        added[-units:] = 1
        masks += [(first.weight, added[:, None]), (first.bias, added), (last.weight, added)]
    return masks
