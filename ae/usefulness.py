"""The usefulness encoder: which frame of the past would help the backbone with what comes next.

Likeness is not usefulness: what looks like the last frame is in view already. So a frame of the past is described by a
key, and what has just been seen by a query of its own, which reads several frames and can tell where the motion goes.
One more key stands for nothing: where no frame's key is nearer to the query, nothing is worth retrieving.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae.model import ResidualBlock, group_norm, read_checkpoint
from ae.params import LatentAEParams
from utils.errors import UserError
from utils.settings import setting
from utils.tensors import fill

GRID = (4, 6)  # places of a frame that keep features of their own


@dataclass(frozen=True, kw_only=True)
class UsefulnessParams(LatentAEParams):
    """Model of usefulness: sizes"""

    past: int = setting(6, "latest frames that the query reads", at_least=1, at_most=64)


class UsefulnessEncoder(nn.Module):
    """Keys of frames, the query of what was seen last, and the key of nothing."""

    def __init__(self, params: UsefulnessParams) -> None:
        super().__init__()
        self.params = params
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise((params.in_channels, *params.hidden_dims)):
            conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
            layers += [conv, group_norm(c_out), nn.SiLU(), ResidualBlock(c_out)]
        _, height, width = params.feature_shape
        grid = (min(height, GRID[0]), min(width, GRID[1]))
        self.frame = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        features = params.hidden_dims[-1] * grid[0] * grid[1]
        size = params.latent_dim
        self.key = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, size))
        self.glance = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, size)
        )  # what the query reads of a frame
        self.ask = nn.Sequential(nn.Linear(params.past * size, 2 * size), nn.SiLU(), nn.Linear(2 * size, size))
        self.none = nn.Parameter(torch.randn(size))
        self.sharpness = nn.Parameter(torch.tensor(2.0))  # logarithm of what cosines are multiplied by

    def keys(self, x: Tensor) -> Tensor:
        """Latent frames [..., C, H, W] to keys [..., latent_dim] of length 1."""
        features = self.frame(x.reshape(-1, *x.shape[-3:]))
        return F.normalize(self.key(features), dim=-1).reshape(*x.shape[:-3], -1)

    def query(self, recent: Tensor) -> Tensor:
        """The latest frames [B, up to `past`, C, H, W], the last one last, to queries [B, latent_dim] of length 1."""
        missing = self.params.past - recent.shape[1]
        if missing > 0:
            recent = torch.cat([recent[:, :1].expand(-1, missing, -1, -1, -1), recent], dim=1)
        recent = recent[:, -self.params.past :]
        glances = self.glance(self.frame(recent.flatten(0, 1))).reshape(len(recent), -1)
        return F.normalize(self.ask(glances), dim=-1)

    @property
    def nothing(self) -> Tensor:
        """The key of nothing [latent_dim], of length 1."""
        return F.normalize(self.none, dim=-1)

    def forward(self, recent: Tensor, frames: Tensor) -> Tensor:
        """How useful frames [B, N, C, H, W] and then nothing are after the `recent` ones: logits [B, N + 1]."""
        nothing = self.nothing.expand(len(frames), 1, -1)
        keys = torch.cat([self.keys(frames), nothing], dim=1)
        return self.sharpness.exp() * torch.einsum("b n d, b d -> b n", keys, self.query(recent))


def params_of(values: object) -> UsefulnessParams:
    """The sizes among the settings of a training."""
    names = UsefulnessParams.__dataclass_fields__
    return UsefulnessParams(**{name: getattr(values, name) for name in names})


def metadata(params: UsefulnessParams, files: Sequence[str]) -> dict[str, str]:
    """What lies beside the weights in an exported file; `files` are those trained on."""
    config = asdict(params) | {"hidden_dims": list(params.hidden_dims), "objective": "usefulness"}
    return {"config": json.dumps(config), "files": json.dumps({"train": list(files)})}


def load_usefulness(path: str | Path, device: str | torch.device, shape: Sequence[int]) -> UsefulnessEncoder:
    """The trained encoder of an exported file: float32, eval mode, frozen.

    Args:
        shape: [C, H, W] of the latents to encode.

    Raises:
        UserError: another file, or one for other latents.
    """
    content = read_checkpoint(path)
    config = content.get("config") or {}
    if config.get("objective") != "usefulness":
        raise UserError(f"{path} is no encoder of usefulness; train one with CONFIG=ae/configs/utility.yaml")
    names = UsefulnessParams.__dataclass_fields__
    params = UsefulnessParams(**{name: config[name] for name in names})
    trained = (params.in_channels, params.spatial_h, params.spatial_w)
    if trained != tuple(shape):
        raise UserError(
            f"encoder {path} was trained on latents of {' x '.join(map(str, trained))} and these are "
            f"{' x '.join(map(str, shape))}; train one on latents of that size"
        )
    encoder = UsefulnessEncoder(params)
    fill(encoder, content["model"], f"encoder {path}", device, torch.float32)
    return encoder
