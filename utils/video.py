"""mp4 files written as a stream: whole or absent."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils import ffmpeg
from utils.errors import UserError
from utils.files import FULL_BELOW, NO_ROOM_REMEDY, atomic, publish, write_fault
from utils.temporary import create_temporary


class VideoWriter:
    """Writes frames to `path` as H.264 mp4; the file appears only on `close`, and only if it is whole.

    Until then the frames are in a hidden file beside it, and an older video of the name stays. Equal frames
    give equal files.

    Args:
        size: (width, height) in pixels, both even.
        fps: frames a second.

    Raises:
        UserError: from every method, when the file cannot be written or the encoder stopped; the hidden file
            is gone then.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], fps: int) -> None:
        self.path = Path(path)
        self.size = size
        self.frames = 0
        self.is_finished = False
        try:
            self.partial = create_temporary(self.path)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {write_fault(error, self.path)}") from error
        try:
            target = ["-movflags", "+faststart", "-f", "mp4", ffmpeg.url(self.partial)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            self.encoder = ffmpeg.start([*ffmpeg.encoding(size, fps), *target], **pipes)
        except BaseException:
            self.partial.unlink(missing_ok=True)
            raise

    def write(self, frames: np.ndarray) -> None:
        """Append frames [T, H, W, 3] of bytes."""
        width, height = self.size
        assert frames.dtype == np.uint8 and frames.shape[1:] == (height, width, 3), (frames.dtype, frames.shape)
        try:
            for frame in np.ascontiguousarray(frames):
                self.encoder.stdin.write(frame.data)
        except OSError as error:
            raise self._failed() from error
        self.frames += len(frames)

    def finish(self) -> None:
        """End the encoding and prove that the hidden file is whole; `close` then only gives it its name."""
        if self.is_finished:
            return
        with suppress(OSError):  # the encoder is gone, which its status tells
            self.encoder.stdin.close()
        said = self.encoder.stderr.read()
        if self.encoder.wait() != 0 or said.strip():
            raise self._failed(said)
        try:
            counted = ffmpeg.count_frames(self.partial)
        except UserError as error:
            self.discard()
            raise UserError(f"cannot write {self.path}: {error}; start again") from error
        if counted != self.frames or counted == 0:
            self.discard()
            raise UserError(f"cannot write {self.path}: {counted} of {self.frames} frames are in the file; start again")
        self.is_finished = True

    def close(self) -> None:
        """Finish the file and give it its name; an older one is replaced."""
        self.finish()
        try:
            publish(self.partial, self.path)
        except OSError as error:
            self.discard()
            raise UserError(f"cannot write {self.path}: {write_fault(error, self.path, self.partial)}") from error
        self.discard()

    def discard(self) -> None:
        """Stop and leave no hidden file; after `close`, nothing is left to do."""
        self.encoder.kill()
        self.encoder.wait()
        for pipe in (self.encoder.stdin, self.encoder.stderr):
            with suppress(OSError):  # frames that the encoder did not take
                pipe.close()
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _failed(self, said: bytes | None = None) -> UserError:
        """Discard, and say why, from what the encoder said and how it ended."""
        if said is None:
            with suppress(OSError):
                self.encoder.stdin.close()
            said = self.encoder.stderr.read()
        status = self.encoder.wait()
        folder = self.path.parent
        if folder.is_dir() and shutil.disk_usage(folder).free < FULL_BELOW:
            reason = f"no space left; {NO_ROOM_REMEDY}"
        elif status < 0:
            reason = f"the encoder was killed ({signal.Signals(-status).name}), maybe for want of memory; start again"
        else:
            reason = f"the encoder stopped with status {status} ({ffmpeg.last_line(said)}); start again"
        self.discard()
        return UserError(f"cannot write {self.path}: {reason}")


def join_videos(parts: Sequence[Path], target: Path, frames: int) -> None:
    """Join finished videos of one kind into `target`, one after another, without encoding anew; atomically.

    Args:
        frames: of all together.

    Raises:
        UserError: it cannot be written, or has another number of frames.
    """
    with atomic(target) as temporary, tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "parts.txt"
        lines = []
        for part in parts:
            quoted = str(part.resolve()).replace("'", r"'\''")
            lines.append(f"file '{quoted}'\n")
        listed.write_text("".join(lines), encoding="utf-8")
        source = ["-f", "concat", "-safe", "0", "-i", ffmpeg.url(listed)]
        arguments = [*source, "-c", "copy", "-movflags", "+faststart", "-f", "mp4", ffmpeg.url(temporary)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        joiner = ffmpeg.start(arguments, **pipes)
        _, said = joiner.communicate()
        if joiner.returncode != 0:
            raise UserError(f"cannot write {target}: its parts cannot be joined ({ffmpeg.last_line(said)})")
        counted = ffmpeg.count_frames(temporary)
        if counted != frames:
            raise UserError(f"cannot write {target}: {counted} of {frames} frames are in the joined file; start again")
