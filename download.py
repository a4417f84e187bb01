"""Download what a backbone needs, or check what is there: `bash download.sh WHAT [options]`.

Only the files that are used; Wan's base transformer (5.7 GB) is not. A cut download goes on where it
stopped, and every file is held against the hub's checksum once. WHAT is a backbone, `corpus` (all that
`generate_latent.sh` reads), `samples` (a few latents to train the retrieval encoder on), or `all`.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.backbones import RELEASE, SAMPLES, WAN, File
from pipeline.downloads import downloads
from utils.claim import claim
from utils.command_line import Parser, folder_name
from utils.complete import problem
from utils.errors import UserError, run
from utils.files import gone_if_empty, require_writable, write_json
from utils.hub import Hub, Remote
from utils.units import in_units

CACHE = Path(".cache/longlive-rag")  # partial files, and the record of what was verified


class Folder:
    """The files under a root and the record of those that were verified.

    The record maps a file to [size, checksum, modification time], so that nothing is hashed twice.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.book = root / CACHE / "verified.json"
        self.verified = self._read_book()

    def state(self, file: File) -> str:
        """`complete`, `missing`, or what is wrong; told offline and without reading the whole file."""
        path = self.root / file.path
        if not path.is_file():
            parts = list(self.book.parent.glob(f"{_flat(file)}.*.partial"))
            return f"half-downloaded ({in_units(parts[0].stat().st_size)} so far)" if parts else "missing"
        size, _, changed = self.verified.get(str(file.path), (None, None, None))
        if size is not None and size != path.stat().st_size:
            return f"incomplete: {path.stat().st_size:,} of {size:,} bytes"
        wrong = problem(path)
        if wrong:
            return f"incomplete: it {wrong}"
        return "complete, verified" if changed == path.stat().st_mtime_ns else "complete"

    def holds(self, file: File, remote: Remote) -> bool:
        """Whether the file is there and has the hub's checksum; hashes it unless it was verified before."""
        path = self.root / file.path
        if not path.is_file() or path.stat().st_size != remote.size:
            return False
        entry = (remote.size, remote.etag, path.stat().st_mtime_ns)
        if self.verified.get(str(file.path)) != entry:
            print(f"verifying {file.path}", flush=True)
            if checksum(path, remote.etag) != remote.etag:
                return False
            self._record(file, entry)
        return True

    def partial(self, file: File, remote: Remote) -> Path:
        """Where a download grows; bound to the content, so that what is resumed belongs together."""
        content = re.sub(r"\W", "", remote.etag)[:16]
        return self.book.parent / f"{_flat(file)}.{content}.partial"

    def take(self, file: File, remote: Remote) -> None:
        """Verify a finished download and give it its name."""
        path = self.root / file.path
        partial = self.partial(file, remote)
        if checksum(partial, remote.etag) != remote.etag:
            partial.unlink()
            raise UserError(
                f"{file.path} came with another checksum than {remote.etag} of {remote.url} and was deleted; "
                "run this again, or use another --endpoint"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(path)
        self._record(file, (remote.size, remote.etag, path.stat().st_mtime_ns))

    def _read_book(self) -> dict[str, tuple[int, str, int]]:
        """The record; a damaged one counts as none, and its files are verified again."""
        if not self.book.is_file():
            return {}
        try:
            entries = json.loads(self.book.read_bytes())
            return {file: _entry(values) for file, values in entries.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            print(f"note: {self.book} is damaged; what is there will be verified again", flush=True)
            return {}

    def _record(self, file: File, entry: tuple[int, str, int]) -> None:
        self.verified[str(file.path)] = entry
        write_json(self.book, self.verified)


def main() -> None:
    offers = downloads()
    parser = Parser(prog="bash download.sh", description=__doc__.partition("\n\n")[2])
    parser.add_argument("what", choices=list(offers), help="a backbone, corpus, samples or all")
    parser.add_argument("--check", action="store_true", help="only report what is there; needs no network")
    parser.add_argument("--root", type=folder_name, default=".", help="where the folders go (default: here)")
    parser.add_argument("--endpoint", help="a mirror of the hub (default: HF_ENDPOINT)")
    parser.add_argument("--revision", help=f"branch, tag or commit of {RELEASE}")
    parser.add_argument("--wan-revision", help=f"branch, tag or commit of {WAN}")
    arguments = parser.parse_args()
    files = offers[arguments.what]
    with_samples = arguments.what in ("samples", "all")
    if not files and not with_samples:
        print(f"{arguments.what} ships with the project; there is nothing to download")
        return
    try:
        folder = Folder(arguments.root)
        if not arguments.check:
            with alone(folder):
                hub = Hub(arguments.endpoint, {RELEASE: arguments.revision, WAN: arguments.wan_revision})
                samples = hub.names(RELEASE, SAMPLES) if with_samples else []
                download(hub, folder, files + [File(name) for name in samples if name.endswith(".pt")])
        whole = report(folder, files + known_samples(folder) if with_samples else files)
    except OSError as error:
        raise UserError(f"{error.filename or arguments.root}: {error.strerror}; choose another --root") from error
    if not whole:
        place = "" if arguments.root == Path() else f" --root {arguments.root}"
        print(f"the missing ones come with: bash download.sh {arguments.what}{place}")
        sys.exit(1)


@contextmanager
def alone(folder: Folder) -> Iterator[None]:
    """Hold the folder against a second download, which would write into the same unfinished files.

    Folders that are made for it and stay empty, as no file came, are taken away again.
    """
    place = folder.book.parent
    with gone_if_empty(place):
        require_writable(folder.root)
        with claim(place, {"what": "downloads"}) as held:
            if not held.take("download"):
                raise UserError(f"another download into {folder.root.resolve()} is at work; wait until it ends")
            yield


def download(hub: Hub, folder: Folder, files: list[File]) -> None:
    """Get what is not there yet, once it is known to fit on the disk."""
    missing = []
    need = 0
    for file in files:
        remote = hub.look_up(file.repo, file.name)
        if not folder.holds(file, remote):
            missing.append((file, remote))
            need += max(remote.size - _size(folder.partial(file, remote)), 0)
    free = shutil.disk_usage(folder.root).free
    if need > free:
        raise UserError(
            f"{in_units(need)} are to come and {folder.root.resolve()} has {in_units(free)} free; "
            "free some, or choose another --root"
        )
    print(f"{len(files) - len(missing)} of {len(files)} files are there, {in_units(need)} to come", flush=True)
    for file, remote in missing:
        hub.download(file.repo, file.name, remote, folder.partial(file, remote))
        folder.take(file, remote)


def known_samples(folder: Folder) -> list[File]:
    """The sample latents that were downloaded before."""
    return [File(name) for name in folder.verified if name.startswith(f"{SAMPLES}/")]


def report(folder: Folder, files: list[File]) -> bool:
    """Print the state of every file, and whether all are complete."""
    width = max((len(str(file.path)) for file in files), default=0)
    faults = 0
    for file in files:
        path = folder.root / file.path
        state = folder.state(file)
        size = in_units(_size(path)) if path.is_file() else "-"
        print(f"{str(file.path).ljust(width)}  {size.rjust(9)}  {state}")
        faults += not state.startswith("complete")
    if faults:
        print(f"{faults} of {len(files)} files are missing or incomplete")
    elif not files:
        print(f"none of {SAMPLES}/ was downloaded here")
    return not faults and bool(files)


def checksum(path: Path, like: str) -> str:
    """A file's checksum of the kind that `like` is: SHA-256 for large files, git's for small ones."""
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", like):
        return like  # a mirror that gives none: the size has to do
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _entry(values: object) -> tuple[int, str, int]:
    """A record's entry; raises ValueError or TypeError where it is none."""
    size, etag, changed = values
    if not isinstance(size, int) or not isinstance(etag, str) or not isinstance(changed, int):
        raise TypeError(values)
    return size, etag, changed


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _flat(file: File) -> str:
    return str(file.path).replace("/", "--")


if __name__ == "__main__":
    run(main)
