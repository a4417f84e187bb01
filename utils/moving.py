"""Pictures and clips as frames of a wanted size and rate."""

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils import ffmpeg
from utils.errors import UserError, first_line

SMALLEST = 16  # pixels a side
LARGEST = 1 << 27  # pixels of a picture
FITS = {  # how a frame of another shape is brought to a size: ffmpeg's filter, and the same with Pillow
    "cover": (
        "scale={w}:{h}:force_original_aspect_ratio=increase:flags=lanczos,crop={w}:{h}",
        lambda picture, size: ImageOps.fit(picture, size, Image.Resampling.LANCZOS),
    ),
    "contain": (
        "scale={w}:{h}:force_original_aspect_ratio=decrease:flags=lanczos,pad={w}:{h}:(ow-iw)/2:(oh-ih)/2",
        lambda picture, size: ImageOps.pad(picture, size, Image.Resampling.LANCZOS),
    ),
    "stretch": (
        "scale={w}:{h}:flags=lanczos",
        lambda picture, size: picture.resize(size, Image.Resampling.LANCZOS),
    ),
}


def is_picture(path: Path) -> bool:
    """Whether a file is one picture, not a clip.

    Raises:
        UserError: it is a picture that is damaged, tiny or huge.
    """
    try:
        with Image.open(path) as picture:
            if getattr(picture, "is_animated", False):
                return False
            _require_sides(path, picture.size)
            picture.load()
            return True
    except UnidentifiedImageError:
        return False
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"picture {path} cannot be read ({first_line(error)}); save it anew as PNG or JPEG") from error


def frames_of(path: Path, size: tuple[int, int], fps: int, fit: str) -> Iterator[np.ndarray]:
    """A picture, or a clip's frames at a rate, [H, W, 3] of bytes each.

    Args:
        size: (width, height) in pixels.
        fit: a name in `FITS`.
    """
    filtered, resized = FITS[fit]
    if is_picture(path):
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        yield np.asarray(resized(upright, size))
        return
    width, height = size
    chain = f"fps={fps},{filtered.format(w=width, h=height)}"
    arguments = ["-i", ffmpeg.url(path), "-map", "0:v:0", "-vf", chain, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    reader = ffmpeg.start(arguments, **pipes)
    try:
        while len(content := reader.stdout.read(width * height * 3)) == width * height * 3:
            yield np.frombuffer(content, np.uint8).reshape(height, width, 3)
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()


def count_frames(path: Path, fps: int, what: str) -> int:
    """Frames of a clip at a rate; it is decoded from end to end.

    Raises:
        UserError: it is no video, is damaged, tiny or without frames; `what` names it.
    """
    arguments = ["-i", ffmpeg.url(path), "-map", "0:v:0", "-vf", f"fps={fps}", "-pix_fmt", "rgb24"]
    arguments += ["-progress", "pipe:1", "-f", "null", "-"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    reader = ffmpeg.start(arguments, **pipes)
    progress, said = reader.communicate()
    if reader.returncode != 0 or said.strip():
        raise UserError(f"{what} {path} is no picture or video that can be read ({ffmpeg.last_line(said)})")
    frames = ffmpeg.frames_in(progress)
    if not frames:
        raise UserError(f"{what} {path} has no frames")
    _require_sides(path, _size_of(path))
    return frames


def _size_of(path: Path) -> tuple[int, int]:
    """(width, height) of a clip's first frame, as it is shown."""
    arguments = ["-i", ffmpeg.url(path), "-map", "0:v:0", "-frames:v", "1", "-c:v", "ppm", "-f", "image2pipe", "pipe:1"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    picture, _ = ffmpeg.start(arguments, **pipes).communicate()
    return Image.open(io.BytesIO(picture)).size


def _require_sides(path: Path, size: tuple[int, int]) -> None:
    if min(size) < SMALLEST:
        raise UserError(f"{path} is {size[0]} x {size[1]} pixels; each side must have at least {SMALLEST}")
    if size[0] * size[1] > LARGEST:
        raise UserError(f"{path} is {size[0]} x {size[1]} pixels, too many to be read; make it smaller")
