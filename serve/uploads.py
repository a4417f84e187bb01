"""Pictures and clips from outside: bounded before they are decoded, kept under names of the server's own."""

import io
import re
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from serve.clips import look
from serve.settings import ServeSettings
from utils.errors import UserError
from utils.files import atomic
from utils.moving import SMALLEST

NAME = re.compile(r"[0-9a-f]{16}\.(png|jpg|webp|mp4|webm)")
MOST = 200  # uploads that are kept; the oldest go
PICTURES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
KINDS = "a PNG, JPEG or WebP picture, or an MP4, MOV or WebM clip"


@dataclass(frozen=True)
class Uploads:
    """The folder of what was uploaded."""

    folder: Path
    limits: ServeSettings

    @property
    def most_bytes(self) -> int:
        return int(self.limits.upload_mb * 1e6)

    def path(self, name: str) -> Path:
        """The file of an upload.

        Raises:
            UserError: there is none of this name.
        """
        path = self.folder / name if NAME.fullmatch(name) else None
        if path is None or not path.is_file():
            raise UserError("there is no such upload; send the picture or clip again")
        return path

    def keep(self, content: bytes) -> Mapping[str, object]:
        """Keep a picture or a clip, and say what it is.

        Raises:
            UserError: it is neither, or larger than the limits allow.
        """
        if len(content) > self.most_bytes:
            raise UserError(f"it has {len(content) / 1e6:.1f} MB; at most {self.limits.upload_mb:g} MB are taken")
        suffix = _kind(content)
        if suffix in PICTURES.values():
            width, height = self._picture(content)
            about = {"width": width, "height": height}
        else:
            about = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{secrets.token_hex(8)}.{suffix}"
        with atomic(path) as temporary:
            temporary.write_bytes(content)
        if not about:
            try:
                about = self._clip(path)
            except UserError:
                path.unlink(missing_ok=True)
                raise
        self._forget_oldest()
        return {"name": path.name, "kind": "picture" if suffix in PICTURES.values() else "clip", **about}

    def _picture(self, content: bytes) -> tuple[int, int]:
        """Size of a picture, which its header says; its pixels are decoded only if they are few enough."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(io.BytesIO(content), formats=list(PICTURES))
            self._require_size(*picture.size)
            picture.load()
            return picture.size
        except Image.DecompressionBombError as error:
            most = self.limits.upload_megapixels
            raise UserError(f"its picture has far too many pixels; at most {most:g} million are taken") from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"it cannot be read as a picture; send {KINDS}") from error

    def _clip(self, path: Path) -> dict[str, float]:
        """Size and length of a clip, from its headers."""
        width, height, seconds = look(path)
        self._require_size(width, height)
        if seconds is None or seconds > self.limits.upload_seconds:
            length = "of unknown length" if seconds is None else f"{seconds:.1f} s long"
            raise UserError(f"the clip is {length}; at most {self.limits.upload_seconds:g} s are taken")
        return {"width": width, "height": height, "seconds": round(seconds, 2)}

    def _require_size(self, width: int, height: int) -> None:
        if min(width, height) < SMALLEST:
            raise UserError(f"its pictures are {width} x {height} pixels; each side must have at least {SMALLEST}")
        if width * height > self.limits.upload_megapixels * 1e6:
            raise UserError(
                f"its pictures are {width} x {height} pixels; "
                f"at most {self.limits.upload_megapixels:g} million are taken"
            )

    def _forget_oldest(self) -> None:
        paths = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in paths[:-MOST]:
            path.unlink(missing_ok=True)


def _kind(content: bytes) -> str:
    """The suffix for a file of such content; told by its first bytes, never by a name."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content[4:8] == b"ftyp":
        return "mp4"
    if content.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm"
    raise UserError(f"it is no picture or clip that is known here; send {KINDS}")
