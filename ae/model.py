"""The retrieval autoencoder: one latent frame to one embedding, and back (arXiv 2606.02553)."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from ae.params import LatentAEParams
from utils.errors import UserError
from utils.tensors import fill, read_tensors


class LatentAE(nn.Module):
    """Convolutional autoencoder of single latent frames; only its encoder is used for retrieval."""

    def __init__(self, params: LatentAEParams):
        super().__init__()
        self.params = params
        self.encoder = Encoder(params)
        self.decoder = Decoder(params)

    def embed(self, x: Tensor) -> Tensor:
        """Latent frames [..., C, H, W] to embeddings [..., latent_dim], not normalised."""
        return self.encoder(x.reshape(-1, *x.shape[-3:])).reshape(*x.shape[:-3], -1)

    def encode(self, x: Tensor) -> Tensor:
        """Latent frames [..., C, H, W] to embeddings [..., latent_dim] of length 1."""
        return F.normalize(self.embed(x), dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent frames [..., C, H, W] to (reconstruction [..., C, H, W], embedding [..., latent_dim])."""
        z = self.embed(x)
        return self.decoder(z.reshape(-1, z.shape[-1])).reshape(x.shape), z


class Encoder(nn.Module):
    def __init__(self, params: LatentAEParams):
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise((params.in_channels, *params.hidden_dims)):
            conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
            layers += [conv, group_norm(c_out), nn.SiLU(), ResidualBlock(c_out)]
        self.conv_stack = nn.Sequential(*layers)
        self.final_norm = nn.Sequential(group_norm(params.hidden_dims[-1]), nn.SiLU())
        self.fc = nn.Linear(params.hidden_dims[-1], params.latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.final_norm(self.conv_stack(x))  # [N, C, h, w]
        return self.fc(x.mean(dim=(-2, -1)))


class Decoder(nn.Module):
    def __init__(self, params: LatentAEParams):
        super().__init__()
        self.params = params
        self.fc = nn.Sequential(nn.Linear(params.latent_dim, math.prod(params.feature_shape)), nn.SiLU())
        widths = params.hidden_dims[::-1]
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(widths):
            conv = nn.Conv2d(c_in, c_out, 3, padding=1)
            layers += [nn.Upsample(scale_factor=2), conv, group_norm(c_out), nn.SiLU(), ResidualBlock(c_out)]
        self.upsample_stack = nn.Sequential(*layers)
        self.final = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(widths[-1], params.in_channels, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.fc(z).unflatten(-1, self.params.feature_shape)
        x = self.final(self.upsample_stack(x))
        return x[..., : self.params.spatial_h, : self.params.spatial_w]


class ResidualBlock(nn.Module):
    """x + f(x), where f starts as zero: its last convolution has no weight yet."""

    def __init__(self, channels: int):
        super().__init__()
        first = nn.Conv2d(channels, channels, 3, padding=1)
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        layers = [group_norm(channels), nn.SiLU(), first, group_norm(channels), nn.SiLU(), last]
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the most groups, among 32, 16, 8, 4 and 1, that divide the channels."""
    for groups in (32, 16, 8, 4):
        if channels % groups == 0:
            return nn.GroupNorm(groups, channels)
    return nn.GroupNorm(1, channels)


# Checkpoints


def load_encoder(
    path: str | Path, device: str | torch.device = "cpu", latent_shape: Sequence[int] | None = None
) -> LatentAE:
    """The trained autoencoder of a checkpoint: float32, eval mode, frozen.

    Args:
        path: `.pt` in the published form (a dict with `model` and, usually, `config`) or `.safetensors`
            (with `config` as JSON in its metadata).
        latent_shape: (..., H, W) or (..., C, H, W) of the latents to encode; checked against the checkpoint.
            A checkpoint without a config needs it.

    Raises:
        UserError: missing, truncated or foreign file, or sizes that do not fit.
    """
    content = read_checkpoint(path)
    params = _params(content["model"], content.get("config"), latent_shape, path)
    if latent_shape is not None:
        _check_latents(params, latent_shape, path)
    with torch.device("meta"):
        model = LatentAE(params)
    fill(model, content["model"], f"encoder {path}", device, torch.float32)
    return model


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """All that an encoder checkpoint holds: `model` (its weights), perhaps `config` and more.

    Raises:
        UserError: missing, truncated or foreign file.
    """
    content = read_tensors(path, "encoder checkpoint", "train one with train_ae_delta.sh or correct the path")
    if Path(path).suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        found = {"model": content}
        for key in ("config", "files"):
            if key not in metadata:
                continue
            try:
                found[key] = json.loads(metadata[key])
            except ValueError as error:
                raise UserError(f"metadata of {path} is not JSON ({error}); it is no encoder checkpoint") from error
        return found
    weights = content.get("model")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        found = ", ".join(map(str, list(content)[:3]))
        raise UserError(f"{path} is no encoder checkpoint: it holds {found}..., and 'model' is needed")
    return content


def _params(
    weights: Mapping[str, Tensor], config: Any, latent_shape: Sequence[int] | None, path: str | Path
) -> LatentAEParams:
    """Sizes from the checkpoint's config, else from the weights' shapes."""
    if config:
        return _params_from_config(config, path)
    if not {"encoder.fc.weight", "encoder.conv_stack.0.weight"} <= weights.keys():
        raise UserError(f"{path} is no encoder checkpoint: it has neither a config nor an encoder's weights")
    if latent_shape is None:
        raise UserError(f"{path} has no config, so the latents' height and width must be given")
    widths = []  # one level is a convolution, a norm, an activation and a residual block
    while (conv := weights.get(f"encoder.conv_stack.{4 * len(widths)}.weight")) is not None:
        widths.append(conv.shape[0])
    return LatentAEParams(
        in_channels=weights["encoder.conv_stack.0.weight"].shape[1],
        spatial_h=latent_shape[-2],
        spatial_w=latent_shape[-1],
        latent_dim=weights["encoder.fc.weight"].shape[0],
        hidden_dims=tuple(widths),
    )


def _params_from_config(config: Any, path: str | Path) -> LatentAEParams:
    """Sizes from a checkpoint's config, most of whose keys are about training."""
    names = [field.name for field in dataclasses.fields(LatentAEParams)]
    sizes = {}
    try:
        for name in names:
            if name == "hidden_dims":
                sizes[name] = tuple(map(int, config[name]))
            else:
                sizes[name] = int(config[name])
        return LatentAEParams(**sizes)
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"config in {path} lacks a usable value among {', '.join(names)}: {error}") from error


def _check_latents(params: LatentAEParams, latent_shape: Sequence[int], path: str | Path) -> None:
    trained = (params.in_channels, params.spatial_h, params.spatial_w)[-len(latent_shape) :]
    given = tuple(latent_shape)[-3:]
    if trained != given:
        size = " x ".join
        raise UserError(
            f"encoder {path} was trained on latents of {size(map(str, trained))} and these are "
            f"{size(map(str, given))}; choose an encoder of that size or change the video size"
        )
