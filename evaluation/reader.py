"""Videos read as a stream, one frame at a time; what cannot be read says why."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from utils.errors import UserError

SMALLEST = 16  # pixels a side
COMPLAINT = re.compile("not found|does not|denied|invalid|unrecognized|error", re.IGNORECASE)


class BadVideo(Exception):
    """This video cannot be evaluated, the others can: one line that says why."""


@dataclass(frozen=True)
class Video:
    """What the file's header says.

    Attributes:
        size: (width, height) in pixels.
        fps: frames a second.
        frames: how many frames the header promises; 0 where it says nothing.
    """

    path: Path
    size: tuple[int, int]
    fps: float
    frames: int


def require_ffmpeg() -> str:
    """Path of the ffmpeg that reads the videos, or a `UserError` that says how to get one."""
    remedy = "pip install imageio-ffmpeg brings one, or set IMAGEIO_FFMPEG_EXE=/path/to/ffmpeg"
    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"no ffmpeg found; {remedy}") from error
    if shutil.which(path) is None:
        raise UserError(f"ffmpeg {path} cannot be run; {remedy}")
    return path


def open_video(path: str | Path) -> tuple[Video, Iterator[np.ndarray]]:
    """Open a video.

    Returns:
        Its header, and its frames [H, W, 3] of bytes in stored order, read while they are consumed.

    Raises:
        BadVideo: the file is no video, or holds fewer frames than its header promises (raised by the
            iterator once it has come to the end).
    """
    path = Path(path)
    stream = imageio_ffmpeg.read_frames(str(path), output_params=["-fps_mode", "passthrough"])
    try:
        meta = next(stream)
    except (OSError, StopIteration, ValueError, KeyError) as error:
        raise BadVideo(f"is not a readable video: {_reason(str(error))}") from error
    width, height = meta["size"]
    fps = float(meta.get("fps") or 0)
    if not (width and height and fps > 0):
        raise BadVideo("has no picture size or frame rate")
    if min(width, height) < SMALLEST:
        raise BadVideo(f"is {width}x{height} pixels; at least {SMALLEST} a side are needed")
    video = Video(path, (width, height), fps, round(meta.get("duration", 0) * fps))
    return video, _frames(stream, video)


def _reason(log: str) -> str:
    """The first complaint in ffmpeg's log."""
    complaints = (line for line in log.splitlines() if COMPLAINT.search(line))
    return re.sub(r"^\[.*?\] *", "", next(complaints, "ffmpeg cannot open it"))


def _frames(stream: Iterator[bytes], video: Video) -> Iterator[np.ndarray]:
    width, height = video.size
    count = 0
    try:
        for data in stream:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            count += 1
    except (OSError, RuntimeError, ValueError) as error:
        raise BadVideo(f"breaks off after {count} frames") from error
    finally:
        stream.close()
    # Headers count in whole hundredths of a second, and some count a frame that is not shown.
    if count < 0.98 * video.frames - 2:
        raise BadVideo(f"is truncated: {count} of {video.frames} frames can be read")
    if count < 2:
        raise BadVideo(f"has {count} frame{'s' * (count != 1)}; at least 2 are needed")
