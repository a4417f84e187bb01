"""The decoders of a run, by name: where their weights lie, which latents they take, how much memory they need."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Union

from utils.errors import DOWNLOAD
from wan.params import LatentFormat, latent_format

if TYPE_CHECKING:  # late below: the decoders' names are settings, which are read before torch is
    import torch
    from diffusers import AutoencoderKLWan

    from pipeline.config import WeightSettings
    from wan.taehv import TAEHV

VAE = Union["AutoencoderKLWan", "TAEHV"]
PASTS: dict[tuple[str, int, int], int] = {}  # (sizes of a decoder, height, width) -> numbers it keeps of a video


@dataclass(frozen=True)
class Read:
    """A look at a decoder's file.

    Attributes:
        format: of the latents that it takes.
        tensors: mapped, by name.
        maps: feature maps of full size that decoding one latent frame holds at a time, about.
        channels: of each of them.
        patch: pixels along each side that one place of such a map stands for.
        sizes: tells decoders of other sizes apart.
        build: makes the decoder without memory for its weights.
    """

    format: LatentFormat
    tensors: Mapping[str, "torch.Tensor"]
    maps: int
    channels: int
    patch: int
    sizes: str
    build: Callable[[], VAE]

    def working_bytes(self, batch: int, height: int, width: int, itemsize: int) -> int:
        """About what decoding one latent frame holds beside the weights."""
        places = (height // self.patch) * (width // self.patch) * self.format.temporal
        return self.maps * batch * self.channels * places * itemsize

    def past_bytes(self, batch: int, height: int, width: int, itemsize: int) -> int:
        """What a decoder keeps from one latent frame to the next."""
        key = (self.sizes, height, width)
        if key not in PASTS:
            PASTS[key] = _past_numbers(self.build(), self.format.shape(height, width))
        return batch * PASTS[key] * itemsize


def _past_numbers(vae: VAE, latent: tuple[int, int, int]) -> int:
    """Numbers that are kept of one video, found by decoding on the meta device."""
    import torch

    from pipeline.decode import start_decoder

    decoder = start_decoder(vae)
    with torch.device("meta"):
        decoder(torch.empty(1, 2, *latent))
    return decoder.past_bytes // torch.float32.itemsize


class Autoencoder(Protocol):
    role: str  # in messages and records

    def remedy(self) -> str:
        """What to do where the file is missing."""

    def find(self, settings: "WeightSettings", folder: Path) -> Path:
        """The file or folder of its weights."""

    def read(self, path: Path) -> Read: ...

    def load(self, path: Path, device: "torch.device", dtype: "torch.dtype") -> VAE: ...


class Full:
    """Wan's own video autoencoder, from the model folder."""

    role = "VAE"

    def remedy(self) -> str:
        return DOWNLOAD

    def find(self, settings: "WeightSettings", folder: Path) -> Path:
        from wan.vae import find_vae

        return find_vae(folder)

    def read(self, path: Path) -> Read:
        from wan.vae import meta_vae, read_vae

        config, tensors = read_vae(path)
        channels = config.get("decoder_base_dim") or config.get("base_dim", 96)
        build = partial(meta_vae, config, f"VAE {path}")
        return Read(latent_format(config), tensors, 8, channels, config.get("patch_size") or 1, repr(config), build)

    def load(self, path: Path, device: "torch.device", dtype: "torch.dtype") -> VAE:
        from wan.vae import load_vae

        return load_vae(path, device, dtype)


class Tiny:
    """A small decoder of the TAEHV family, from a file of its own."""

    role = "tiny_vae_ckpt"

    def remedy(self) -> str:
        from wan.taehv import REMEDY

        return REMEDY

    def find(self, settings: "WeightSettings", folder: Path) -> Path:
        return Path(settings.tiny_vae_ckpt)

    def read(self, path: Path) -> Read:
        from wan.taehv import read_taehv

        vae, tensors = read_taehv(path)
        return Read(vae.format, tensors, 3, vae.widths[-1], vae.patch_size, repr(vae), lambda: vae)

    def load(self, path: Path, device: "torch.device", dtype: "torch.dtype") -> VAE:
        from wan.taehv import load_taehv

        return load_taehv(path, device, dtype)


AUTOENCODERS: dict[str, Autoencoder] = {"full": Full(), "tiny": Tiny()}
