"""Paths as a user means them: relative to the current folder; the project's own files are found from anywhere."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def written_path(path: str | Path) -> Path:
    """Where to write: `~` is the home folder, and a relative path is the caller's."""
    path = Path(path)
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or no home
        return path


def read_path(path: str | Path) -> Path:
    """Where to read: as `written_path`; what is not there is looked for in the project's folder.

    So `checkpoints/tinyworld.safetensors` of a shipped config is found from any folder.
    """
    path = written_path(path)
    shipped = ROOT / path
    if not path.exists() and shipped.exists():
        return shipped
    return path
