"""Videos read as a stream, one frame at a time; what cannot be read says why."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from utils.errors import UserError

SMALLEST = 16  # pixels a side
LONGEST_LOG = 1 << 22  # bytes of ffmpeg's log that are looked at
REMEDY = "pip install imageio-ffmpeg brings a new one, or set IMAGEIO_FFMPEG_EXE=/path/to/ffmpeg"

# Lines of ffmpeg's log. Metadata, which may say anything, is indented further than these.
DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)", re.MULTILINE)
CHOSEN = re.compile(r"^  Stream #0:(\d+) -> #0:0 ", re.MULTILINE)
STREAM = re.compile(r"^  Stream #0:(\d+)\b[^ ]*: (.*)$", re.MULTILINE)
FRAME_RATE = re.compile(r", ([\d.]+)(k?) fps")
COMPLAINT = re.compile("not found|does not|denied|invalid|unrecognized|error", re.IGNORECASE)
CUT_SHORT = re.compile("partial file|ended prematurely", re.IGNORECASE)


class BadVideo(Exception):
    """This video cannot be evaluated, the others can: one line that says why."""


@dataclass(frozen=True)
class Video:
    """What the file's header says.

    Attributes:
        size: (width, height) in pixels.
        fps: frames a second.
        frames: how many frames the header promises; 0 where it says nothing of the pictures alone.
    """

    path: Path
    size: tuple[int, int]
    fps: float
    frames: int


def require_ffmpeg() -> str:
    """Path of the ffmpeg that reads the videos, or a `UserError` that says how to get one."""
    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"no ffmpeg found; {REMEDY}") from error
    if shutil.which(path) is None:
        raise UserError(f"ffmpeg {path} cannot be run; {REMEDY}")
    try:
        run = subprocess.run(
            [path, "-nostdin", "-fps_mode", "passthrough", "-version"], capture_output=True, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise UserError(f"ffmpeg {path} cannot be run: {error.strerror}; {REMEDY}") from error
    if run.returncode != 0:
        raise UserError(f"ffmpeg {path} is too old, it does not know -fps_mode; 5.1 or newer is needed: {REMEDY}")
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
    decoder = Decoder(path)
    try:
        first = decoder.read()
        log = decoder.log()
        if first is None:
            raise BadVideo(f"is not a readable video: {_reason(log)}")
        video = _header(path, first, log)
    except BaseException:
        decoder.close()
        raise
    return video, _frames(decoder, first, video)


class Decoder:
    """An ffmpeg that writes the frames of one file to a pipe, and its log to a nameless file."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-nostats"]
        command += ["-i", f"file:{path}"]  # so that a colon or a dash in the name stays part of the name
        command += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log)

    def read(self) -> np.ndarray | None:
        """The next frame [H, W, 3] of bytes, None at the end.

        Raises:
            BadVideo: the pipe ends within a frame.
        """
        # A frame is a PPM picture: the lines "P6", "width height" and "255", then its bytes.
        pipe = self._process.stdout
        if not pipe.readline():
            return None
        size = pipe.readline().split()
        pipe.readline()
        if len(size) != 2:
            raise self._broken()
        width = int(size[0])
        height = int(size[1])
        data = pipe.read(width * height * 3)
        if len(data) < width * height * 3:
            raise self._broken()
        self.count += 1
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def _broken(self) -> BadVideo:
        return BadVideo(f"breaks off after {self.count} frames")

    def log(self) -> str:
        """What ffmpeg has said so far."""
        # pread leaves the position alone at which ffmpeg goes on writing.
        return os.pread(self._log.fileno(), LONGEST_LOG, 0).decode(errors="replace")

    def wait(self) -> int:
        """ffmpeg's exit status, after the last frame."""
        return self._process.wait()

    def close(self) -> None:
        """End ffmpeg, wherever it is."""
        self._process.kill()
        self._process.stdout.close()
        self._process.wait()
        self._log.close()


def _header(path: Path, first: np.ndarray, log: str) -> Video:
    height, width = first.shape[:2]
    if min(width, height) < SMALLEST:
        raise BadVideo(f"is {width}x{height} pixels; at least {SMALLEST} a side are needed")
    streams = dict(STREAM.findall(log.partition("\nStream mapping:")[0]))
    chosen = CHOSEN.search(log)
    rate = FRAME_RATE.search(streams.get(chosen[1], "")) if chosen else None
    if rate is None or float(rate[1]) == 0:
        raise BadVideo("has no frame rate")
    fps = float(rate[1])
    if rate[2] == "k":
        fps *= 1000
    return Video(path, (width, height), fps, round(_duration(streams, log) * fps))


def _duration(streams: dict[str, str], log: str) -> float:
    """Seconds that the header promises, 0 where they may be those of another stream than the pictures."""
    for stream in streams.values():
        if not stream.startswith("Video: "):
            return 0.0  # the file is as long as its longest stream, which may be the audio
    found = DURATION.search(log)
    if found is None:
        return 0.0
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _reason(log: str) -> str:
    """The first complaint in ffmpeg's log."""
    for line in log.splitlines():
        if COMPLAINT.search(line):
            return re.sub(r"^(\[.*?\] *)+", "", line)
    return "ffmpeg finds no pictures in it"


def _frames(decoder: Decoder, first: np.ndarray, video: Video) -> Iterator[np.ndarray]:
    frame = first
    try:
        while frame is not None:
            if frame.shape != first.shape:
                raise BadVideo(f"changes its picture size at frame {decoder.count - 1}")
            yield frame
            frame = decoder.read()
        status = decoder.wait()
        log = decoder.log()
    finally:
        decoder.close()
    _require_whole(video, decoder.count, status, log)


def _require_whole(video: Video, count: int, status: int, log: str) -> None:
    # Headers count in whole hundredths of a second, and some count a frame that is not shown.
    if count < 0.98 * video.frames - 2:
        raise BadVideo(f"is truncated: {count} of {video.frames} frames can be read")
    if video.frames == 0 and CUT_SHORT.search(log):
        raise BadVideo(f"is truncated: it ends after {count} frames")
    if status != 0:
        raise BadVideo(f"breaks off after {count} frames")
    if count < 2:
        raise BadVideo(f"has {count} frame; at least 2 are needed")
