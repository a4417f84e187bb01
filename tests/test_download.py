"""`download.sh` against a stand-in of the hub on this machine: what it gets, how it goes on, what it says."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save

import download
from pipeline.backbones import RELEASE, SAMPLES, WAN, WAN_FOLDER
from pipeline.downloads import downloads
from utils.complete import problem
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
BIG = "models_t5_umt5-xxl-enc-bf16.pth"
BACKBONE = "checkpoints/causal_forcing.pt"


def archive(numbers: int) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(numbers)}, buffer)
    return buffer.getvalue()


class Hub(ThreadingHTTPServer):
    """Two repositories at one revision, as the hub serves them: large files through a redirect, in ranges.

    Attributes:
        content: (repository, file) -> bytes.
        cuts: file -> after how many bytes of each coming answer the connection breaks.
        lies: files that are served with one byte changed.
        asked: (method, path, first byte) of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        files = {item.repo: [] for item in downloads()["all"]}
        self.content = {}
        for item in downloads()["all"]:
            body = {".json": b'{"a": 1}\n', ".txt": b"a prompt\n"}.get(item.path.suffix) or archive(len(files))
            self.content[item.repo, item.name] = body
        self.content[WAN, BIG] = archive(400_000)
        for number in range(2):
            self.content[RELEASE, f"{SAMPLES}/latent_{number:06d}.pt"] = archive(number)
        self.cuts: dict[str, list[int]] = {}
        self.lies: set[str] = set()
        self.asked: list[tuple[str, str, int]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        first = int(re.findall(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[0])
        self.server.asked.append((self.command, self.path, first))
        if tree := re.fullmatch(r"/api/models/(\w+[\w./-]*)/tree/main/(\w+).*", self.path):
            repo, folder = tree.groups()
            entries = [
                {"type": "file", "path": file, "size": len(body), "oid": "0" * 40}
                for (owner, file), body in self.server.content.items()
                if owner == repo and file.startswith(f"{folder}/")
            ]
            return self.answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        repo, revision, file = re.fullmatch(r"/(?:cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path).groups()
        if revision != "main":
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if (repo, file) not in self.server.content:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        body = self.server.content[repo, file]
        headers = {"X-Repo-Commit": "c" * 40}
        if file.endswith((".json", ".txt")):
            git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            return self.answer(200, body, headers | {"ETag": f'"{git}"'})
        if not self.path.startswith("/cdn/"):
            # Of another name, as the store behind the hub is: a HEAD is answered by the hub itself.
            linked = {"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
            return self.answer(
                302, b"", headers | linked | {"Location": f"http://localhost:{self.server.server_port}/cdn{self.path}"}
            )
        if file in self.server.lies:
            body = body[:-1] + bytes([body[-1] ^ 1])
        cut = self.server.cuts.get(file, [])
        limit = cut.pop(0) if cut else None
        if file in getattr(self.server, "silent", ()):
            return self.answer(206, b"", {})
        self.answer(206, body[first:], {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}, limit)

    def answer(self, status: int, body: bytes, headers: dict, limit: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:limit])
        self.close_connection = limit is not None

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    yield server
    server.shutdown()
    server.server_close()


def get(hub: Hub, root: Path, monkeypatch, *options: str, backbone: str = "causal_forcing") -> None:
    monkeypatch.setattr(sys, "argv", ["download", backbone, "--root", str(root), "--endpoint", hub.address, *options])
    download.main()


def transfers(hub: Hub, file: str) -> list[int]:
    """First bytes of the answers that carried a file."""
    return [first for method, path, first in hub.asked if method == "GET" and path.startswith("/cdn/") and file in path]


def written(root: Path) -> set[str]:
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[0] != ".cache"}


def test_a_backbone_comes_with_just_the_files_it_uses_and_is_not_fetched_twice(hub, tmp_path, monkeypatch, capsys):
    get(hub, tmp_path, monkeypatch)
    expected = {str(item.path) for item in downloads()["causal_forcing"]}
    assert written(tmp_path) == expected and len(expected) == 9
    assert (tmp_path / BACKBONE).read_bytes() == hub.content[RELEASE, BACKBONE]
    table = capsys.readouterr().out
    assert table.count("complete, verified") == 9 and "3.2 MB" in table
    hub.asked.clear()
    get(hub, tmp_path, monkeypatch)
    assert {method for method, _, _ in hub.asked} == {"HEAD"}


def test_all_adds_the_corpus_and_the_sample_latents(hub, tmp_path, monkeypatch):
    get(hub, tmp_path, monkeypatch, backbone="all")
    assert {"toydatasets/latent_000001.pt", "checkpoints/vidprom_filtered_extended.txt"} < written(tmp_path)
    assert not any("diffusion_pytorch_model" in path for _, path, _ in hub.asked)


def test_files_that_are_there_already_are_verified_not_fetched(hub, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / BACKBONE).write_bytes(hub.content[RELEASE, BACKBONE])
    get(hub, tmp_path, monkeypatch)
    assert not transfers(hub, BACKBONE)


def test_a_cut_connection_goes_on_where_it_broke(hub, tmp_path, monkeypatch):
    hub.cuts[BIG] = [1_000_000, 500_000]
    get(hub, tmp_path, monkeypatch)
    starts = transfers(hub, BIG)
    assert len(starts) == 3 and 0 == starts[0] < starts[1] <= 1_000_000 and starts[1] < starts[2] <= 1_500_000
    assert (tmp_path / WAN_FOLDER / BIG).read_bytes() == hub.content[WAN, BIG]


def test_a_download_that_was_given_up_resumes_in_the_next_run(hub, tmp_path, monkeypatch, capsys):
    hub.cuts[BIG] = [1_000_000, 0]  # the second attempt brings nothing
    with pytest.raises(UserError, match=r"1\.0 MB of 3\.2 MB are kept; run this again") as error:
        get(hub, tmp_path, monkeypatch)
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit):
        get(hub, tmp_path, monkeypatch, "--check")
    assert "half-downloaded (1.0 MB so far)" in capsys.readouterr().out
    hub.asked.clear()
    get(hub, tmp_path, monkeypatch)
    assert len(transfers(hub, BIG)) == 1 and transfers(hub, BIG)[0] > 900_000
    assert (tmp_path / WAN_FOLDER / BIG).read_bytes() == hub.content[WAN, BIG]


def test_another_checksum_is_refused_and_leaves_no_file(hub, tmp_path, monkeypatch):
    hub.lies.add(BACKBONE)
    with pytest.raises(UserError, match=r"causal_forcing\.pt came with another checksum"):
        get(hub, tmp_path, monkeypatch)
    assert BACKBONE not in written(tmp_path) and not list(tmp_path.rglob("*causal_forcing*.partial"))
    hub.lies.clear()
    get(hub, tmp_path, monkeypatch)
    assert BACKBONE in written(tmp_path)


def test_a_file_that_the_hub_lacks_is_named(hub, tmp_path, monkeypatch):
    del hub.content[RELEASE, BACKBONE]
    with pytest.raises(UserError, match=r"causal_forcing\.pt is not in qixinhu11/LongLive-RAG at http"):
        get(hub, tmp_path, monkeypatch)
    assert not written(tmp_path), "nothing is fetched until all is known to be there"


def test_a_revision_that_the_hub_lacks_is_named(hub, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"revision v9 is not in qixinhu11/LongLive-RAG .* --revision"):
        get(hub, tmp_path, monkeypatch, "--revision", "v9")


def test_a_full_disk_is_noticed_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match=r"3\.2 MB are to come and .* has 1\.0 MB free"):
        get(hub, tmp_path, monkeypatch)
    assert not written(tmp_path)


def command(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
    environment = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        ["bash", ROOT / "download.sh", *map(str, arguments)],
        env=os.environ | environment | variables, capture_output=True, text=True,
    )  # fmt: skip


def test_no_network_is_one_line_and_exit_status_2(tmp_path):
    run = command("longlive", "--root", tmp_path, "--endpoint", "http://127.0.0.1:9")
    assert run.returncode == 2
    assert run.stderr.startswith("error: cannot get config.json from Wan-AI/Wan2.1-T2V-1.3B at http://127.0.0.1:9")
    assert len(run.stderr.splitlines()) == 1 and "HF_ENDPOINT" in run.stderr


def test_check_works_offline_and_tells_whole_files_from_others(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    whole, half = archive(100), archive(100)[:-10]
    (tmp_path / "checkpoints/longlive_base.pt").write_bytes(whole)
    (tmp_path / "checkpoints/longlive_lora.pt").write_bytes(half)
    run = command("longlive", "--check", "--root", tmp_path)
    states = {row.split()[0]: row.split(maxsplit=3)[-1] for row in run.stdout.splitlines()}
    assert run.returncode == 1 and not run.stderr
    assert states["checkpoints/longlive_base.pt"] == "complete"
    assert "truncated" in states["checkpoints/longlive_lora.pt"]
    assert states["checkpoints/ae_latent_mem.pt"] == "missing"
    assert "9 of 10 files are missing or incomplete" in run.stdout


def test_tinyworld_needs_nothing():
    run = command("tinyworld")
    assert run.returncode == 0 and "nothing to download" in run.stdout


def test_a_damaged_record_of_what_was_verified_costs_a_second_look_and_one_note(hub, tmp_path, monkeypatch, capsys):
    get(hub, tmp_path, monkeypatch)
    book = tmp_path / download.CACHE / "verified.json"
    entries = json.loads(book.read_text())
    for content in ("", "[1]", '{"a": ', "\xff\xfe", json.dumps({BACKBONE: [1]}), json.dumps({BACKBONE: ["1", 2, 3]})):
        book.write_text(content, encoding="latin-1")
        hub.asked.clear()
        capsys.readouterr()
        get(hub, tmp_path, monkeypatch)
        said = capsys.readouterr().out
        assert said.count("note: ") == 1 and said.count("verifying ") == 9 and "verified.json is damaged" in said
        assert not transfers(hub, BACKBONE) and json.loads(book.read_text()) == entries


def test_a_hub_that_sends_nothing_is_given_up(hub, tmp_path, monkeypatch):
    body = hub.content[WAN, BIG]
    monkeypatch.setattr(Hub, "silent", {BIG}, raising=False)
    with pytest.raises(UserError, match=r"sends nothing; 0 kB of 3\.2 MB are kept"):
        get(hub, tmp_path, monkeypatch)
    monkeypatch.setattr(Hub, "silent", set())
    get(hub, tmp_path, monkeypatch)
    assert (tmp_path / WAN_FOLDER / BIG).read_bytes() == body


def test_a_second_download_into_a_folder_is_refused(hub, tmp_path, monkeypatch):
    with (
        download.alone(download.Folder(tmp_path)),
        pytest.raises(UserError, match=r"another download into .* is at work"),
    ):
        get(hub, tmp_path, monkeypatch)
    assert not hub.asked
    get(hub, tmp_path, monkeypatch)


def test_variables_that_the_client_cannot_read_are_one_line(tmp_path):
    run = command("longlive", "--root", tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="soon")
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1 and "correct the HF_* variables" in run.stderr
    run = command("longlive", "--root", tmp_path, HF_HUB_OFFLINE="1")
    assert run.returncode == 2 and run.stderr.startswith("error: HF_HUB_OFFLINE is set")


def test_samples_alone_can_be_had(hub, tmp_path, monkeypatch, capsys):
    get(hub, tmp_path, monkeypatch, backbone="samples")
    assert written(tmp_path) == {f"{SAMPLES}/latent_{number:06d}.pt" for number in range(2)}
    assert capsys.readouterr().out.count("complete, verified") == 2
    with pytest.raises(SystemExit):
        get(hub, tmp_path / "other", monkeypatch, "--check", backbone="samples")


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "http://[::1", "ftp://127.0.0.1/x"])
def test_an_endpoint_that_is_none_is_one_line(tmp_path, monkeypatch, endpoint):
    monkeypatch.setattr(sys, "argv", ["download", "longlive", "--root", str(tmp_path), "--endpoint", endpoint])
    with pytest.raises(UserError, match=r"cannot get config\.json from") as error:
        download.main()
    assert "\n" not in str(error.value)


def test_a_root_that_is_a_file_is_one_line(hub, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints") as error:
        get(hub, tmp_path, monkeypatch)
    assert "choose another --root" in str(error.value)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.safetensors", save({"x": torch.zeros(9)}), None),
        ("a.safetensors", save({"x": torch.zeros(9)})[:-1], "truncated"),
        ("a.safetensors", save({"x": torch.zeros(9)}) + b"more", "where its header says"),
        ("a.safetensors", b"<html></html>", "no safetensors"),
        ("a.pt", save({"x": torch.zeros(9)}), None),
        ("a.pt", save({"x": torch.zeros(9)})[:-1], "truncated"),
        ("a.safetensors", archive(9), None),
        ("a.safetensors", archive(9)[: len(archive(9)) // 2], "truncated"),
        ("a.pt", archive(9), None),
        ("a.pt", archive(9)[: len(archive(9)) // 2], "truncated"),
        ("a.json", b"{}", None),
        ("a.json", b'{"a": ', "JSON"),
        ("a.txt", b"", "empty"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_a_file_shows_whether_it_is_whole(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    found = problem(tmp_path / name)
    assert found is None if words is None else words in found
