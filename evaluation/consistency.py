"""Subject and background consistency with pretrained DINO and CLIP, where their weights are at hand."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.measure import PICTURES_A_SECOND
from evaluation.reader import open_video
from utils.errors import UserError

if TYPE_CHECKING:
    import torch

SIDE = 224


@dataclass(frozen=True)
class Source:
    """A published model: where it may lie, and how its pictures are prepared.

    Attributes:
        crop: cut out the square in the middle, or keep the whole picture.
    """

    name: str
    option: str
    repo: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: bool


SOURCES = {
    "subject_consistency": Source(
        "DINO", "--dino", "facebook/dino-vitb16", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop=False
    ),
    "background_consistency": Source(
        "CLIP", "--clip", "openai/clip-vit-base-patch32",
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), crop=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Encoder:
    """A loaded model: pictures [B, 3, H, W], normalised, to features [B, D]."""

    source: Source
    device: str
    features: Callable[["torch.Tensor"], "torch.Tensor"]


def load(dino: str, clip: str) -> tuple[dict[str, Encoder], list[str]]:
    """Load what is wanted and there.

    Args:
        dino, clip: "auto", "off", or a folder saved by transformers.

    Returns:
        metric -> encoder, and a line about each metric that is left out for want of weights.

    Raises:
        UserError: a folder that was named holds no such model.
    """
    encoders, notes = {}, []
    for (metric, source), choice in zip(SOURCES.items(), (dino, clip), strict=True):
        place = _at_hand(source) if choice == "auto" else choice
        if choice == "off":
            continue
        if place is None:
            notes.append(
                f"{metric.replace('_', ' ')} is left out: no {source.name} weights at hand. "
                f"'hf download {source.repo}' fetches them; {source.option} FOLDER names them; {source.option} off "
                "leaves this line away."
            )
            continue
        encoders[metric] = _load(source, place)
    return encoders, notes


def score(encoder: Encoder, path: Path) -> float:
    """VBench's consistency of a whole video, in percent.

    Mean over its frames, four a second and without the first, of the cosine similarity to the frame before
    and to the first one, each at least 0, averaged (Huang et al. 2024, VBench, appendix).
    """
    import torch

    video, frames = open_video(path)
    every = max(1, round(video.fps / PICTURES_A_SECOND))
    first = before = None
    similarities = []
    with torch.inference_mode():
        for number, frame in enumerate(frames):
            if number % every:
                continue
            x = torch.nn.functional.normalize(encoder.features(_prepare(frame, encoder)), dim=-1)[0]
            if first is None:
                first = x
            else:
                similarities.append((max(0.0, float(x @ before)) + max(0.0, float(x @ first))) / 2)
            before = x
    return 100 * sum(similarities) / len(similarities) if similarities else 100.0


def _at_hand(source: Source) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    if source.name == "DINO" and all(part.exists() for part in _hub()):
        return "torch hub"
    return source.repo if isinstance(try_to_load_from_cache(source.repo, "config.json"), str) else None


def _hub() -> tuple[Path, Path]:
    """Where torch hub keeps DINO's code and weights."""
    home = Path(
        os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    ).expanduser()
    return home / "hub/facebookresearch_dino_main", home / "hub/checkpoints/dino_vitbase16_pretrain.pth"


def _load(source: Source, place: str) -> Encoder:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if place == "torch hub":
        model = torch.hub.load(str(_hub()[0]), "dino_vitb16", source="local").to(device).eval()
        return Encoder(source, device, model)
    from transformers import AutoModel

    try:
        model: Any = AutoModel.from_pretrained(place, local_files_only=True).to(device).eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{source.option} {place} holds no model that transformers can load: {reason}") from error
    if source.crop != hasattr(model, "get_image_features"):
        raise UserError(f"{source.option} {place} holds a {type(model).__name__}, which is no {source.name}")
    if source.crop:
        return Encoder(source, device, lambda x: _tensor(model.get_image_features(pixel_values=x)))
    return Encoder(
        source, device, lambda x: model(pixel_values=x, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    )


def _tensor(output: Any) -> "torch.Tensor":  # transformers 5 wraps what transformers 4 returned bare
    return getattr(output, "pooler_output", output)


def _prepare(frame: Any, encoder: Encoder) -> "torch.Tensor":
    """Frame [H, W, 3] of bytes to [1, 3, h, w], its shorter side 224 pixels."""
    import torch

    source = encoder.source
    x = torch.from_numpy(frame.copy()).to(encoder.device).permute(2, 0, 1)[None].float() / 255
    height, width = x.shape[2:]
    size = [round(side * SIDE / min(height, width)) for side in (height, width)]
    x = torch.nn.functional.interpolate(x, size, mode="bicubic" if source.crop else "bilinear", align_corners=False)
    if source.crop:
        top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
        x = x[:, :, top : top + SIDE, left : left + SIDE]
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (source.mean, source.std))
    return (x.clamp(0, 1) - mean) / std
