"""Settings of the server; those of the videos are a run's."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_address

from utils.settings import Settings, load_settings, setting


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Settings):
    """Server"""

    host: str = setting(
        "127.0.0.1", "address to listen at; any but one of this machine's own demands a token", place=True
    )
    name: str | None = setting(None, "host name by which it is asked for, too, as by a proxy", place=True)
    port: int = setting(0, "port to listen at; 0 for a free one", at_least=0, at_most=65535, place=True)
    waiting: int = setting(8, "takes that may wait, at most", at_least=1, at_most=1000, place=True)
    longest: float = setting(120.0, "seconds of video a take may have, at most", above=0, at_most=86400, place=True)
    upload_mb: float = setting(64.0, "bytes of an uploaded picture or clip, in MB, at most", above=0, at_most=4096)
    upload_megapixels: float = setting(16.0, "pixels of its pictures, in millions, at most", above=0, at_most=128)
    upload_seconds: float = setting(60.0, "seconds of an uploaded clip, at most", above=0, at_most=3600)
    readers: int = setting(64, "pages that may follow at once, at most", at_least=1, at_most=10000, place=True)

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        if self.host == "localhost":
            return False
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:
            return True


def split_settings(words: Sequence[str]) -> tuple[ServeSettings, list[str]]:
    """The server's settings among `key=value` words, and the other words."""
    names = {field.name for field in fields(ServeSettings)}
    own = []
    others = []
    for word in words:
        if word.partition("=")[0] in names:
            own.append(word)
        else:
            others.append(word)
    return load_settings(ServeSettings, None, own), others
