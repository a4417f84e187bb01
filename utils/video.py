"""mp4 files written as a stream: whole or absent."""

import os
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from utils.errors import UserError


class VideoWriter:
    """Writes frames to `path` as H.264 mp4; the file appears only on `close`.

    Frames stream into a fragmented mp4 under a hidden name, whose written part stays readable
    whatever happens; `close` remuxes it for the web (index first) and gives it its name.

    Args:
        size: (width, height) in pixels, both even.
        fps: frames a second.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], fps: int) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.stem}.partial.mp4")
        self.frames = 0
        self.stream = imageio_ffmpeg.write_frames(
            str(self.partial),
            size,
            fps=fps,
            codec="libx264",
            pix_fmt_in="rgb24",
            pix_fmt_out="yuv420p",
            macro_block_size=1,
            quality=None,
            ffmpeg_log_level="quiet",
            output_params=["-crf", "18", "-movflags", "+frag_keyframe+empty_moov"],
        )
        self.stream.send(None)

    def write(self, frames: np.ndarray) -> None:
        """Append frames [T, H, W, 3] of bytes."""
        try:
            for frame in np.ascontiguousarray(frames):
                self.stream.send(frame)
        except OSError as error:
            self.discard()
            raise UserError(f"cannot write {self.path}: {_why(self.path, error)}") from error
        self.frames += len(frames)

    def close(self) -> None:
        """Finish the file and give it its name."""
        self.stream.close()
        final = self.partial.with_name(f".{self.path.stem}.final.mp4")
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-i", self.partial, "-c", "copy"]
        try:
            subprocess.run([*command, "-movflags", "+faststart", final], check=True, capture_output=True, text=True)
            os.replace(final, self.path)
        except subprocess.CalledProcessError as error:
            raise UserError(f"cannot write {self.path}: {_why(self.path, error.stderr.strip())}") from error
        finally:
            final.unlink(missing_ok=True)
            self.partial.unlink(missing_ok=True)

    def discard(self) -> None:
        """Stop and leave no file; after `close`, nothing is left to do."""
        self.stream.close()
        self.partial.unlink(missing_ok=True)


def _why(path: Path, error: object) -> str:
    free = shutil.disk_usage(path.parent).free
    return "no space left; free some and start again" if free < 1 << 20 else f"the encoder stopped ({error})"
