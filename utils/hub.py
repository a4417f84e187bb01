"""The hub's repositories: what a file there is, and getting it piece by piece, with every fault in one line."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError
from utils.units import in_units


@dataclass(frozen=True)
class Remote:
    """What the hub says of a file; `etag` is its checksum."""

    url: str
    size: int
    etag: str


class Hub:
    """The repositories, through huggingface_hub.

    Args:
        endpoint: a mirror; None follows HF_ENDPOINT.
        revisions: repository -> branch, tag or commit; None is the main branch.
    """

    def __init__(self, endpoint: str | None, revisions: dict[str, str | None]) -> None:
        self.endpoint = endpoint
        self.revisions = revisions

    def look_up(self, repo: str, name: str) -> Remote:
        """Size, checksum and address of a file."""
        with self._explained(name, repo):
            from huggingface_hub import get_hf_file_metadata, hf_hub_url  # slow to import, needed online only

            url = hf_hub_url(repo, name, revision=self.revisions[repo], endpoint=self.endpoint)
            found = get_hf_file_metadata(url, endpoint=self.endpoint)
        if found.size is None or found.etag is None:
            raise UserError(f"{url} does not say its size and checksum; use another --endpoint")
        return Remote(url, found.size, found.etag)

    def names(self, repo: str, folder: str) -> list[str]:
        """Which files a folder of a repository has."""
        with self._explained(folder, repo):
            from huggingface_hub import HfApi

            tree = HfApi(endpoint=self.endpoint).list_repo_tree(repo, folder, revision=self.revisions[repo])
            return [entry.path for entry in tree]

    def download(self, repo: str, name: str, remote: Remote, partial: Path) -> None:
        """Append to `partial` until it is whole; goes on after a cut as long as each attempt brings something."""
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        seconds = 0.2 if sys.stderr.isatty() else 30
        with tqdm(total=remote.size, desc=Path(name).name, unit="B", unit_scale=True, mininterval=seconds) as bar:
            while (have := partial.stat().st_size) < remote.size:
                bar.update(have - bar.n)
                reason = None
                try:
                    with self._explained(name, repo):
                        self._append(remote, partial, have, bar)
                except UserError as error:
                    reason = error
                now = partial.stat().st_size
                if now <= have:
                    what = reason or f"cannot get {name}: {remote.url} sends nothing"
                    done = f"{in_units(now)} of {in_units(remote.size)} are kept; run this again to go on"
                    raise UserError(f"{what}; {done}") from reason

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
        try:
            from huggingface_hub import constants, errors
        except Exception as error:  # it reads the HF_* variables when it is imported
            raise UserError(
                f"huggingface_hub does not start ({_first_line(error)}); correct the HF_* variables"
            ) from error
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
            reason = _first_line(error)
            raise UserError(f"cannot get {what} from {place} ({reason}); check the network or HF_ENDPOINT") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
