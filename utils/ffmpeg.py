"""The ffmpeg program: where it is, whether it can encode here, how a path is passed to it."""

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import imageio_ffmpeg

from utils.errors import UserError

CPUINFO = Path("/proc/cpuinfo")
REMEDY = "unset IMAGEIO_FFMPEG_EXE, or name a newer ffmpeg with libx264 in it"


def executable() -> str:
    """The program: what IMAGEIO_FFMPEG_EXE names, or the one that comes with imageio-ffmpeg, or the system's.

    Raises:
        UserError: there is none.
    """
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError("no ffmpeg is found; install imageio-ffmpeg anew, or name one in IMAGEIO_FFMPEG_EXE") from error


def start(arguments: Sequence[str], **pipes: int) -> subprocess.Popen:
    """Start ffmpeg, which then says nothing but errors.

    It is in a session of its own, so that Ctrl-C reaches this process alone, which then decides what becomes
    of the file. It ends with this process all the same where it reads from a pipe, as the pipe ends.
    """
    command = [executable(), "-y", "-v", "error", *arguments]
    try:
        return subprocess.Popen(command, start_new_session=True, **pipes)
    except OSError as error:
        raise UserError(f"ffmpeg cannot be started: {command[0]}: {error.strerror}; {REMEDY}") from error


def url(path: str | Path) -> str:
    """`path` for ffmpeg's command line, where a bare one with a colon is a protocol and one with a dash an option."""
    return f"file:{path}"


def encoding(size: tuple[int, int], fps: int) -> list[str]:
    """Arguments that read raw frames [T, H, W, 3] of bytes from a pipe and encode them as H.264.

    Args:
        size: (width, height) in pixels.
    """
    width, height = size
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0"]
    encoder = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18"]
    if _has_avx512():
        # x264's macroblock tree reads memory that nobody wrote there, and equal frames give unequal files.
        encoder += ["-x264-params", "asm=avx2"]
    return source + encoder


@cache
def _has_avx512() -> bool:
    try:
        return "avx512" in CPUINFO.read_text()
    except OSError:  # not Linux; no Mac has it
        return False


def require_encoder() -> None:
    """Encode one frame to nowhere: proves before any work that videos can be written.

    Raises:
        UserError: ffmpeg is missing, does not run, or does not know the encoder or an option.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    trial = start([*encoding((16, 16), fps=16), "-f", "null", "-"], **pipes)
    _, said = trial.communicate(bytes(16 * 16 * 3))
    if trial.returncode != 0:
        raise UserError(f"ffmpeg cannot encode H.264: {executable()}: {last_line(said)}; {REMEDY}")


def count_frames(path: Path) -> int:
    """Frames of the video in a finished file, read from end to end without decoding.

    Raises:
        UserError: the file cannot be read to its end.
    """
    arguments = ["-i", url(path), "-map", "0:v:0", "-c", "copy", "-progress", "pipe:1", "-f", "null", "-"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    reader = start(arguments, **pipes)
    progress, said = reader.communicate()
    if reader.returncode != 0 or said.strip():
        raise UserError(f"{path} cannot be read to its end ({last_line(said)})")
    return frames_in(progress)


def frames_in(progress: bytes) -> int:
    """The last count of frames in what `-progress` wrote."""
    frames = 0
    for line in progress.decode().splitlines():
        key, _, value = line.partition("=")
        if key == "frame":
            frames = int(value)
    return frames


def last_line(said: bytes) -> str:
    """What ffmpeg said last, in printable characters."""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else "it said nothing"
