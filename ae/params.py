"""Sizes of the retrieval autoencoder."""

import math
from dataclasses import dataclass

from utils.errors import UserError
from utils.settings import Settings, setting

WIDEST = 16_384


@dataclass(frozen=True, kw_only=True)
class LatentAEParams(Settings):
    """Model: sizes, under the names that training configs and checkpoints use."""

    in_channels: int = setting(16, "channels of a latent frame", at_least=1, at_most=1024)
    spatial_h: int = setting(60, "height of a latent frame, 1/8 of the video's", at_least=1, at_most=4096)
    spatial_w: int = setting(104, "width of a latent frame, 1/8 of the video's", at_least=1, at_most=4096)
    latent_dim: int = setting(1024, "numbers in an embedding", at_least=1, at_most=WIDEST)
    hidden_dims: tuple[int, ...] = setting(
        (64, 128, 256), "channels of each level; a level halves height and width", at_least=1, at_most=WIDEST
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hidden_dims", tuple(self.hidden_dims))  # a file gives a list
        if not self.hidden_dims:
            raise UserError("setting 'hidden_dims' is empty; give one width or more, such as [64,128,256]")
        halvings = math.ceil(math.log2(max(self.spatial_h, self.spatial_w)))
        if len(self.hidden_dims) > max(1, halvings):
            raise UserError(
                f"setting 'hidden_dims' has {len(self.hidden_dims)} levels, and a latent frame of {self.spatial_h} x "
                f"{self.spatial_w} is a single point after {max(1, halvings)}; give fewer widths"
            )

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) after the encoder's last level; each level halves and rounds up."""
        scale = 2 ** len(self.hidden_dims)
        height = math.ceil(self.spatial_h / scale)
        width = math.ceil(self.spatial_w / scale)
        return self.hidden_dims[-1], height, width
