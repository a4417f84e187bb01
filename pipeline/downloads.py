"""What download.sh offers, and which files a run still lacks. Nothing here imports more than the standard library."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.backbones import BACKBONES, CORPUS_BACKBONE, CORPUS_PROMPTS, File, all_files
from utils.errors import UserError
from utils.units import in_units

PROJECT = Path(__file__).resolve().parent.parent


def downloads() -> dict[str, list[File]]:
    """What can be asked of download.sh -> the files of it that are known beforehand, in the order of the table."""
    found = {}
    for name, backbone in BACKBONES.items():
        found[name] = [file for file in backbone.files if file.repo]
    found["corpus"] = [*found[CORPUS_BACKBONE], CORPUS_PROMPTS]
    found["samples"] = []
    every = [file for files in found.values() for file in files]
    found["all"] = list(dict.fromkeys(every))
    return found


@dataclass(frozen=True)
class Missing:
    """A file of the table that a run needs and that is not there.

    Attributes:
        path: where the run looks for it.
        root: the folder under which a download has to put it.
    """

    file: File
    path: Path
    root: Path


def missing(model_folder: str | Path, files: Iterable[str | Path | None], vae: bool = True) -> list[Missing]:
    """Which published files a run needs and lacks; paths that are not in the table are passed over.

    Args:
        model_folder: the folder with text encoder, tokenizer and VAE.
        files: the other files that the run reads: checkpoint, LoRA, retrieval encoder, prompts. None counts as none.
        vae: whether the model folder's VAE is used.
    """
    paths = []
    for backbone in BACKBONES.values():
        parts = backbone.model.files if vae else backbone.model.text_encoder
        paths += [Path(model_folder) / file.name for file in parts]
    paths += [Path(path) for path in files if path is not None]
    found = []
    for path in paths:
        for file in all_files():
            root = _root(path, file.path)
            if root is not None and not _is_there(root, file):
                found.append(Missing(file, path, root))
    return list(dict.fromkeys(found))


def require_downloaded(model_folder: str | Path, files: Iterable[str | Path | None], vae: bool = True) -> None:
    """Refuse a run that lacks published files: all of them at once, with their sizes and the command that gets them.

    Args: as those of `missing`.
    """
    files = list(files)
    lacking = missing(model_folder, files, vae)
    ours = [entry for entry in lacking if entry.file.repo is None and _is_here(entry.root)]
    published = [entry for entry in lacking if entry.file.repo is not None]
    if ours:
        paths = " ".join(str(entry.path) for entry in ours)
        raise UserError(
            f"{paths}: part of this project, and not here; run this in its folder, or 'git checkout -- {paths}'"
        )
    if not published:
        return
    named = ", ".join(_with_size(entry) for entry in published)
    raise UserError(f"not downloaded yet: {named}; get them with {_command(published, files)}: {_total(published)}")


def _root(path: Path, place: Path) -> Path | None:
    """The folder in which `path` is `place`; None where it ends in something else."""
    length = len(place.parts)
    if path.parts[-length:] != place.parts:
        return None
    above = path.parts[:-length]
    return Path(*above) if above else PROJECT  # where what is not in the caller's folder is looked for


def _is_there(root: Path, file: File) -> bool:
    if file.optional:
        return True
    return any((root / file.folder / name).exists() for name in (file.name, *file.others))


def _is_here(root: Path) -> bool:
    """Whether it is this project's folder, into which download.sh puts files by itself."""
    return root.resolve() == PROJECT


def _with_size(entry: Missing) -> str:
    return f"{entry.path} ({in_units(entry.file.size)})" if entry.file.size else str(entry.path)


def _total(entries: Sequence[Missing]) -> str:
    """The sum of the sizes that are known, and how many are not."""
    gigabytes = sum(entry.file.size or 0 for entry in entries) / 1e9
    unknown = sum(entry.file.size is None for entry in entries)
    files = "1 file" if unknown == 1 else f"{unknown} files"
    if not unknown:
        return f"{gigabytes:.1f} GB"
    if unknown == len(entries):
        return f"{files} whose size the hub tells"
    return f"{gigabytes:.1f} GB, and {files} whose size the hub tells"


def _command(entries: Sequence[Missing], files: Sequence[str | Path | None]) -> str:
    """The smallest download that brings all of them; of equal ones, that of the run's own backbone."""
    named = {Path(path).name for path in files if path is not None}
    wanted = {entry.file for entry in entries}
    offers = {name: parts for name, parts in downloads().items() if wanted <= set(parts)}
    own = [name for name in offers if name in BACKBONES and BACKBONES[name].weights[0].path.name in named]
    target = [*own, *offers][0]
    commands = []
    for root in dict.fromkeys(entry.root for entry in entries):
        place = "" if _is_here(root) else f" --root {shlex.quote(str(root.resolve()))}"
        commands.append(f"'bash download.sh {target}{place}'")
    return " and ".join(commands)
