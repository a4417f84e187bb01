"""What a clip's headers say of it; nothing is decoded."""

import re
import subprocess
from pathlib import Path

from utils import ffmpeg
from utils.errors import UserError

PATIENCE = 10.0  # seconds for reading headers
LENGTH = re.compile(r"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")
SIZE = re.compile(r"Stream #.*: Video: .*?\b(\d{1,6})x(\d{1,6})\b")


def look(path: Path) -> tuple[int, int, float | None]:
    """Width and height in pixels, and seconds where the file says them.

    Raises:
        UserError: it is no clip.
    """
    # Of files alone: what a clip refers to elsewhere is not fetched.
    words = [ffmpeg.executable(), "-hide_banner", "-nostdin", "-protocol_whitelist", "file", "-i", ffmpeg.url(path)]
    try:
        run = subprocess.run(words, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError("the clip's headers cannot be read; save it anew as MP4") from error
    said = run.stderr.decode(errors="replace")
    size = SIZE.search(said)
    if size is None:
        raise UserError("the clip has no pictures that can be read; save it anew as MP4")
    length = LENGTH.search(said)
    seconds = None
    if length is not None:
        seconds = int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3])
    return int(size[1]), int(size[2]), seconds
