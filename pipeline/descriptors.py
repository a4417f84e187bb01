"""What a finished frame is retrieved by: a vector for each latent frame.

A descriptor's fields are its settings. To add one, write a class and name it in `DESCRIPTORS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from utils.errors import UserError
from utils.settings import Settings, setting

if TYPE_CHECKING:
    import torch

Describe = Callable[["torch.Tensor"], "torch.Tensor"]  # [B, F, C, H, W] clean latents -> [B, F, D] float32


@runtime_checkable
class Asking(Protocol):
    """What describes frames and asks otherwise than with the last frame's description; it may ask for nothing.

    Attributes:
        past: how many of the latest frames the query reads.
        nothing: [D] what must be less similar to the query than a frame that is worth retrieving.
    """

    past: int
    nothing: "torch.Tensor"

    def __call__(self, latents: "torch.Tensor") -> "torch.Tensor":
        """See `Describe`."""

    def query(self, recent: "torch.Tensor") -> "torch.Tensor":
        """[B, up to `past`, C, H, W] latest latents, the last one last, to [B, D] of length 1."""


class Descriptor(Protocol):
    def files(self) -> dict[str, Path]:
        """Name of a setting -> the weight file that it names."""

    def load(self, shape: tuple[int, int, int], device: "torch.device | str") -> Describe:
        """The function that describes frames of `shape` [C, H, W]; cosines between its vectors mean similarity.

        Raises:
            UserError: the weights are made for other latents.
        """


@dataclass(frozen=True, kw_only=True)
class AvgPool(Settings):
    """Descriptor avg_pool: the mean over space, one number a channel"""

    def files(self) -> dict[str, Path]:
        return {}

    def load(self, shape: tuple[int, int, int], device: "torch.device | str") -> Describe:
        return lambda latents: latents.float().mean(dim=(-2, -1))


@dataclass(frozen=True, kw_only=True)
class AutoEncoder(Settings):
    """Descriptor ae: the trained retrieval encoder's embedding, of length 1"""

    ae_ckpt: str | None = setting(None, "ae: weights of the retrieval encoder", place=True, reads=True)

    def files(self) -> dict[str, Path]:
        if not self.ae_ckpt:
            raise UserError("compression_method is 'ae' but model_kwargs.ae_ckpt names no file; or use 'avg_pool'")
        return {"ae_ckpt": Path(self.ae_ckpt)}

    def load(self, shape: tuple[int, int, int], device: "torch.device | str") -> Describe:
        from ae.model import load_encoder  # late: settings are read before torch is

        encoder = load_encoder(self.ae_ckpt, device, shape)
        return lambda latents: encoder.encode(latents.float())


@dataclass(frozen=True, kw_only=True)
class Useful(Settings):
    """Descriptor useful: keys and queries of the usefulness encoder, which may also ask for nothing"""

    useful_ckpt: str | None = setting(None, "useful: weights of the usefulness encoder", place=True, reads=True)

    def files(self) -> dict[str, Path]:
        if not self.useful_ckpt:
            raise UserError(
                "compression_method is 'useful' but model_kwargs.useful_ckpt names no file; or use 'avg_pool'"
            )
        return {"useful_ckpt": Path(self.useful_ckpt)}

    def load(self, shape: tuple[int, int, int], device: "torch.device | str") -> Describe:
        return _LoadedUseful(self.useful_ckpt, shape, device)


class _LoadedUseful:
    """Implements `Asking`."""

    def __init__(self, path: str, shape: tuple[int, int, int], device: "torch.device | str") -> None:
        from ae.usefulness import load_usefulness  # late: settings are read before torch is

        self.encoder = load_usefulness(path, device, shape)
        self.past = self.encoder.params.past
        self.nothing = self.encoder.nothing

    def __call__(self, latents: "torch.Tensor") -> "torch.Tensor":
        return self.encoder.keys(latents.float())

    def query(self, recent: "torch.Tensor") -> "torch.Tensor":
        return self.encoder.query(recent.float())


DESCRIPTORS: dict[str, type] = {"avg_pool": AvgPool, "ae": AutoEncoder, "useful": Useful}
