"""Download what a backbone needs, or check what is there: `python -m utils.download BACKBONE [options]`.

Only the files that are used; Wan's base transformer (5.7 GB) is not. A cut download goes on where it
stopped, and every file is held against the hub's checksum once.
"""

import argparse
import errno
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from utils.complete import fault
from utils.errors import UserError, run
from utils.files import require_writable, write_json

WAN, RELEASE = "Wan-AI/Wan2.1-T2V-1.3B", "qixinhu11/LongLive-RAG"
WAN_FOLDER = "wan_models/Wan2.1-T2V-1.3B"
CACHE = Path(".cache/longlive-rag")  # partial files, and the record of what was verified

WAN_FILES = (
    "config.json",
    "models_t5_umt5-xxl-enc-bf16.pth",
    "Wan2.1_VAE.pth",
    "google/umt5-xxl/special_tokens_map.json",
    "google/umt5-xxl/tokenizer.json",
    "google/umt5-xxl/tokenizer_config.json",
)
SHARED = ("checkpoints/ae_latent_mem.pt", "checkpoints/moviegenbench_128_refined.txt")
BACKBONES = {
    "causal_forcing": ("checkpoints/causal_forcing.pt",),
    "self_forcing": ("checkpoints/self_forcing.pt",),
    "longlive": ("checkpoints/longlive_base.pt", "checkpoints/longlive_lora.pt"),
}
CORPUS = ("checkpoints/vidprom_filtered_extended.txt",)  # for making and training on latents
SAMPLES = "toydatasets"  # a folder of latents; which files it has, the hub says


@dataclass(frozen=True)
class Item:
    """A file of a repository and the place where it belongs, relative to the root."""

    repo: str
    file: str

    @property
    def path(self) -> Path:
        return Path(WAN_FOLDER if self.repo == WAN else ".") / self.file


@dataclass(frozen=True)
class Remote:
    """What the hub says of a file; `etag` is its checksum."""

    url: str
    size: int
    etag: str


class Folder:
    """The files under a root and the record of those that were verified.

    The record maps a file to [size, checksum, modification time], so that nothing is hashed twice.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.book = root, root / CACHE / "verified.json"
        self.verified: dict[str, list] = json.loads(self.book.read_text()) if self.book.exists() else {}

    def state(self, item: Item) -> str:
        """`complete`, `missing`, or what is wrong; told offline and without reading the whole file."""
        path = self.root / item.path
        if not path.is_file():
            parts = list(self.book.parent.glob(f"{_flat(item)}.*.partial"))
            return f"half-downloaded ({in_units(parts[0].stat().st_size)} so far)" if parts else "missing"
        size, _, changed = self.verified.get(str(item.path), (None, None, None))
        if size is not None and size != path.stat().st_size:
            return f"incomplete: {path.stat().st_size:,} of {size:,} bytes"
        if wrong := fault(path):
            return f"incomplete: it {wrong}"
        return "complete, verified" if changed == path.stat().st_mtime_ns else "complete"

    def holds(self, item: Item, remote: Remote) -> bool:
        """Whether the file is there and has the hub's checksum; hashes it unless it was verified before."""
        path = self.root / item.path
        if not path.is_file() or path.stat().st_size != remote.size:
            return False
        entry = [remote.size, remote.etag, path.stat().st_mtime_ns]
        if self.verified.get(str(item.path)) != entry:
            print(f"verifying {item.path}", flush=True)
            if checksum(path, remote.etag) != remote.etag:
                return False
            self._record(item, entry)
        return True

    def partial(self, item: Item, remote: Remote) -> Path:
        """Where a download grows; bound to the content, so that what is resumed belongs together."""
        return self.book.parent / f"{_flat(item)}.{remote.etag[:16]}.partial"

    def take(self, item: Item, remote: Remote) -> None:
        """Verify a finished download and give it its name."""
        path, partial = self.root / item.path, self.partial(item, remote)
        if checksum(partial, remote.etag) != remote.etag:
            partial.unlink()
            raise UserError(
                f"{item.path} came with another checksum than {remote.etag} of {remote.url} and was deleted; "
                "run this again, or use another --endpoint"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(path)
        self._record(item, [remote.size, remote.etag, path.stat().st_mtime_ns])

    def _record(self, item: Item, entry: list) -> None:
        self.verified[str(item.path)] = entry
        write_json(self.book, self.verified)


class Hub:
    """The repositories, through huggingface_hub.

    Args:
        endpoint: a mirror; None follows HF_ENDPOINT.
        revisions: repository -> branch, tag or commit; None is the main branch.
    """

    def __init__(self, endpoint: str | None, revisions: dict[str, str | None]) -> None:
        self.endpoint, self.revisions = endpoint, revisions

    def look_up(self, item: Item) -> Remote:
        """Size, checksum and address of a file."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url  # slow to import, needed online only

        url = hf_hub_url(item.repo, item.file, revision=self.revisions[item.repo], endpoint=self.endpoint)
        with self._explained(item.file, item.repo):
            found = get_hf_file_metadata(url, endpoint=self.endpoint)
        if found.size is None or found.etag is None:
            raise UserError(f"{url} does not say its size and checksum; use another --endpoint")
        return Remote(url, found.size, found.etag)

    def samples(self) -> list[Item]:
        """The files of the folder of sample latents."""
        from huggingface_hub import HfApi

        with self._explained(SAMPLES, RELEASE):
            tree = HfApi(endpoint=self.endpoint).list_repo_tree(RELEASE, SAMPLES, revision=self.revisions[RELEASE])
            return [Item(RELEASE, entry.path) for entry in tree if entry.path.endswith(".pt")]

    def download(self, item: Item, remote: Remote, partial: Path) -> None:
        """Append to `partial` until it is whole; goes on after a cut as long as each attempt brings something."""
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        quiet = not sys.stderr.isatty()
        with tqdm(
            total=remote.size, desc=item.path.name, unit="B", unit_scale=True, mininterval=30 if quiet else 0.2
        ) as bar:
            while (have := partial.stat().st_size) < remote.size:
                bar.update(have - bar.n)
                try:
                    with self._explained(item.file, item.repo):
                        self._append(remote, partial, have, bar)
                except UserError as error:
                    if (now := partial.stat().st_size) > have:
                        continue
                    done = f"{in_units(now)} of {in_units(remote.size)} are kept; run this again to go on"
                    raise UserError(f"{error}; {done}") from error

    def _append(self, remote: Remote, partial: Path, have: int, bar: tqdm) -> None:
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        headers = build_hf_headers() | {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", remote.url, headers=headers, timeout=timeout, follow_redirects=True) as reply:
            hf_raise_for_status(reply)
            resumed = reply.status_code == 206
            with open(partial, "ab" if resumed else "wb") as file:
                for chunk in reply.iter_raw():
                    file.write(chunk)
                    bar.update(len(chunk))

    @contextmanager
    def _explained(self, what: str, repo: str) -> Iterator[None]:
        """Turn what can go wrong between here and the hub into one line."""
        from huggingface_hub import constants, errors

        place = f"{repo} at {self.endpoint or constants.ENDPOINT}"
        try:
            yield
        except UserError:
            raise
        except errors.EntryNotFoundError as error:
            raise UserError(f"{what} is not in {place}; name the --revision or --endpoint that has it") from error
        except errors.RevisionNotFoundError as error:
            raise UserError(f"revision {self.revisions[repo]} is not in {place}; correct --revision") from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(f"{place} does not exist or needs a login; correct --endpoint or set HF_TOKEN") from error
        except errors.OfflineModeIsEnabled as error:
            raise UserError("HF_HUB_OFFLINE is set; unset it, or use --check, which needs no network") from error
        except Exception as error:  # the client beneath differs between versions of huggingface_hub
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise UserError(f"no space left for {what}; free some, or choose another --root") from error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot get {what} from {place} ({reason}); check the network or HF_ENDPOINT") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="bash download.sh", description=__doc__.partition("\n\n")[2])
    parser.add_argument("backbone", choices=["tinyworld", *BACKBONES, "all"])
    parser.add_argument("--check", action="store_true", help="only report what is there; needs no network")
    parser.add_argument("--root", type=Path, default=Path("."), help="where the folders go (default: here)")
    parser.add_argument("--endpoint", help="a mirror of the hub (default: HF_ENDPOINT)")
    parser.add_argument("--revision", help=f"branch, tag or commit of {RELEASE}")
    parser.add_argument("--wan-revision", help=f"branch, tag or commit of {WAN}")
    arguments = parser.parse_args()
    if arguments.backbone == "tinyworld":
        print("tinyworld ships with the project; there is nothing to download")
        return
    folder, items = Folder(arguments.root), items_of(arguments.backbone)
    if arguments.check:
        report(folder, items, arguments.backbone)
        return
    hub = Hub(arguments.endpoint, {RELEASE: arguments.revision, WAN: arguments.wan_revision})
    download(hub, folder, items + (hub.samples() if arguments.backbone == "all" else []))
    report(folder, items, arguments.backbone)


def items_of(backbone: str) -> list[Item]:
    """The files of one backbone, or of all and the corpus."""
    own = [file for name, files in BACKBONES.items() if backbone in (name, "all") for file in files]
    corpus = CORPUS if backbone == "all" else ()
    return [*(Item(WAN, file) for file in WAN_FILES), *(Item(RELEASE, file) for file in (*own, *SHARED, *corpus))]


def download(hub: Hub, folder: Folder, items: list[Item]) -> None:
    """Get what is not there yet, once it is known to fit on the disk."""
    require_writable(folder.root)
    missing = [(item, remote) for item in items if not folder.holds(item, remote := hub.look_up(item))]
    need = sum(remote.size - _size(folder.partial(item, remote)) for item, remote in missing)
    free = shutil.disk_usage(folder.root).free
    if need > free:
        raise UserError(
            f"{in_units(need)} are to come and {folder.root.resolve()} has {in_units(free)} free; "
            "free some, or choose another --root"
        )
    print(f"{len(items) - len(missing)} of {len(items)} files are there, {in_units(need)} to come", flush=True)
    for item, remote in missing:
        hub.download(item, remote, folder.partial(item, remote))
        folder.take(item, remote)


def report(folder: Folder, items: list[Item], backbone: str) -> None:
    """Print the state of every file; exit status 1 if one is not complete."""
    samples = [Item(RELEASE, file) for file in folder.verified if file.startswith(f"{SAMPLES}/")]
    rows = [(item.path, folder.state(item)) for item in (*items, *(samples if backbone == "all" else ()))]
    width = max(len(str(path)) for path, _ in rows)
    for path, state in rows:
        size = in_units(_size(folder.root / path)) if (folder.root / path).is_file() else "-"
        print(f"{str(path).ljust(width)}  {size.rjust(9)}  {state}")
    faults = sum(not state.startswith("complete") for _, state in rows)
    if faults:
        print(f"{faults} of {len(rows)} files are missing or incomplete: bash download.sh {backbone}")
        sys.exit(1)


def checksum(path: Path, like: str) -> str:
    """A file's checksum of the kind that `like` is: SHA-256 for large files, git's for small ones."""
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", like):
        return like  # a mirror that gives none: the size has to do
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def in_units(size: int) -> str:
    """Bytes for a person: 11.4 GB, 3.2 MB, 10 kB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _flat(item: Item) -> str:
    return str(item.path).replace("/", "--")


if __name__ == "__main__":
    run(main)
