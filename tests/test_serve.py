"""The server as people meet it: takes that equal a run's, hostile clients, a kill in the middle, a real browser."""

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import inference
from serve.preview import to_jpeg
from tests.browser import CHROMIUM, Browser
from tests.commands import ROOT, command

PROMPT = "A meadow at noon, the camera following a wolf right past a red house, a blue tree, a yellow tower."
OTHER = "A desert at night, the camera following a fox left past a red balloon."
# Small and short: what is made is no matter here.
SIZES = ["num_output_frames=24", "height=32", "width=48", "denoising_step_list=[1000,500]", "segment_blocks=3"]
SETTINGS = [*SIZES, "model_kwargs.recent_exclude=0", "model_kwargs.compression_method=avg_pool"]
LIMITS = ["waiting=3", "longest=600", "upload_mb=1"]
PATIENCE = 240.0  # seconds for anything that is waited for


class Server:
    """A server in a process of its own."""

    def __init__(self, folder: Path) -> None:
        words = ["tinyworld", "latentmem", f"output_folder={folder}", *SETTINGS, *LIMITS]
        self.process = command(*words, launcher="serve.sh")
        for line in self.process.stdout:
            if line.startswith("open "):
                self.address = line.split()[1]
                break
        else:
            raise AssertionError(self.process.stderr.read())
        self.port = int(self.address.split(":")[2].strip("/"))

    def ask(self, method: str, path: str, content: object = None, status: int | None = None, **headers: str):
        """The answer to a request: parsed where it is JSON, else bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
        if not isinstance(content, bytes) and content is not None:
            headers = {"content-type": "application/json"} | headers
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with suppress(BrokenPipeError, ConnectionResetError):  # it may answer before it has taken all of a body
            connection.request(method, path, body, named)
        answer = connection.getresponse()
        found = answer.read()
        connection.close()
        if status is not None:
            assert answer.status == status, (method, path, answer.status, found[:300])
        return json.loads(found) if answer.getheader("content-type") == "application/json" else found

    def submit(self, **request: object) -> list[int]:
        answer = self.ask("POST", "/api/takes", {"prompt": PROMPT} | request, 201)
        return [take["number"] for take in answer["takes"]]

    def take(self, number: int) -> dict:
        return self.ask("GET", f"/api/takes/{number}", status=200)

    def follow(self, number: int, wanted) -> dict:
        """Read the events until a take is as wanted; the last news of it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for line in connection.makefile("rb"):
                if line.startswith(b"data: "):
                    for take in json.loads(line[6:])["takes"]:
                        if take["number"] == number and wanted(take):
                            return take
        raise AssertionError("the events ended")

    def finish(self, *numbers: int) -> None:
        for number in numbers:
            take = self.follow(number, lambda take: take["state"] in ("done", "failed"))
            assert take["state"] == "done", take["error"]

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("takes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What inference.sh makes of the same request."""
    folder = tmp_path_factory.mktemp("whole")
    before = sys.argv
    words = ["configs/tinyworld_latentmem.yaml", *SETTINGS, "keep_latents=true", f"prompt={PROMPT}"]
    words.append(f"output_folder={folder}")
    sys.argv = ["inference", *words]
    inference.main()
    sys.argv = before
    return folder


@pytest.fixture(scope="module")
def killed(folder):
    """A server that hostile clients came to, and that was killed while it made a take."""
    server = Server(folder)
    try:
        (number,) = server.submit(method="latentmem", seed=0)
        server.follow(number, lambda take: take["state"] == "making")
        server.ask("POST", f"/api/takes/{number}/pause")
        outcomes = hostile(server)
        server.ask("POST", f"/api/takes/{number}/resume")
        server.follow(number, lambda take: take["blocks"] >= 4)
    finally:
        server.kill()
    return number, outcomes


@pytest.fixture(scope="module")
def server(folder, killed):
    server = Server(folder)
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 143
    assert server.process.stderr.read().startswith("stopped")


def hostile(server: Server) -> dict[str, list]:
    """20 clients at once; what each kind was answered."""
    outcomes: dict[str, list] = {}
    held = []

    def client(name: str, content: bytes, stays: bool = False) -> None:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        held.append(connection)
        try:
            connection.sendall(content)
            if not stays:
                connection.shutdown(socket.SHUT_WR)
            first = b"" if stays else connection.recv(4096)
        except OSError:
            first = b""
        status = first.split(b" ")[1].decode() if first.startswith(b"HTTP/1.1 ") else ""
        outcomes.setdefault(name, []).append(status)
        if not stays:
            connection.close()

    local = b"Host: localhost\r\n"
    submit = b"POST /api/takes HTTP/1.1\r\n" + local
    upload = b"POST /api/uploads HTTP/1.1\r\n" + local
    piece = b"10000\r\n" + 65536 * b"x" + b"\r\n"
    asked = {
        "reads nothing": b"GET /api/events HTTP/1.1\r\n" + local + b"\r\n",
        "vanishes": submit + b"Content-Length: 500\r\n\r\n{",
        "garbage": os.urandom(2000),
        "1 GB": upload + b"Content-Length: 1073741824\r\n\r\nxxxx",
        "endless": upload + b"Transfer-Encoding: chunked\r\n\r\n" + 40 * piece,
        "other origin": submit + b"Origin: http://evil.example\r\nContent-Length: 2\r\n\r\n{}",
        "other name": b"GET /api/takes HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    }
    threads = []
    for name, content in asked.items():
        stays = name == "reads nothing"
        for _ in range(3 if not stays else 2):
            threads.append(threading.Thread(target=client, args=(name, content, stays)))
    assert len(threads) == 20
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def same_files(one: Path, other: Path) -> None:
    for end in (".mp4", ".latents.npy"):
        assert (one / f"00000-0{end}").read_bytes() == (other / f"00000-0{end}").read_bytes(), end
    blocks = [json.loads((folder / "00000-0.json").read_text())["blocks"] for folder in (one, other)]
    assert blocks[0] == blocks[1]


def test_a_take_among_hostile_clients_and_a_kill_equals_a_run(server, folder, killed, whole):
    number, outcomes = killed
    server.finish(number)
    same_files(folder / f"{number:04d}", whole)
    assert not list((folder / f"{number:04d}").glob(".*.mp4"))
    assert set(outcomes["1 GB"]) == {"413"} and set(outcomes["endless"]) <= {"413", "503", ""}
    assert set(outcomes["other origin"]) == set(outcomes["other name"]) == {"403"}
    assert set(outcomes["garbage"]) <= {"400", ""} and set(outcomes["vanishes"]) <= {"400", ""}


def test_a_switch_a_pause_and_two_memories_side_by_side(server, folder):
    one, other = server.submit(method="latentmem", against={"method": "native"}, seed=5, frames=36)
    server.follow(one, lambda take: take["blocks"] >= 1)
    server.ask("POST", f"/api/takes/{one}/pause", status=200)
    paused = server.follow(one, lambda take: take.get("paused") or take["state"] == "done")
    assert paused["state"] == "making"
    server.ask("POST", f"/api/takes/{one}/switch", {"prompt": OTHER, "how": "cut"}, 200)
    server.ask("POST", f"/api/takes/{one}/resume", status=200)
    server.finish(one, other)
    segments = server.take(one)["segments"]
    assert [segment["prompt"] for segment in segments] == [PROMPT, OTHER] and segments[1]["how"] == "cut"
    record = json.loads((folder / f"{one:04d}" / "00000-0.json").read_text())
    assert record["scenes"] == segments
    # The same noise, the same past: they begin alike.
    mine, theirs = (server.ask("GET", f"/api/takes/{number}/blocks")["blocks"] for number in (one, other))
    assert mine[0]["latents"] == theirs[0]["latents"] and mine[-1]["latents"] != theirs[-1]["latents"]
    assert mine[-1]["retrieved"] and not theirs[-1]["retrieved"]
    assert [piece[0] for piece in theirs[-1]["pieces"]].count("own") == 3
    end = time.monotonic() + PATIENCE
    while server.ask("GET", f"/api/reports/{one}/{other}")["state"] == "making" and time.monotonic() < end:
        server.take(one)
    assert b"<html" in server.ask("GET", f"/api/reports/{one}/{other}", accept="text/html")


def test_a_fork_keeps_what_was_before_and_a_redo_what_is_around(server, killed):
    parent = killed[0]
    (fork,) = server.submit(prompt=OTHER, method="native", parent=parent, at="12f")
    (redo,) = server.submit(prompt="", parent=parent, redo="12f-15f", keep_after=True, seed=9)
    server.finish(fork, redo)
    digests = {}
    for number in (parent, fork, redo):
        blocks = server.ask("GET", f"/api/takes/{number}/blocks")["blocks"]
        digests[number] = [block["latents"] for block in blocks]
    equal = {}
    for number in (fork, redo):
        equal[number] = [mine == theirs for mine, theirs in zip(digests[number], digests[parent], strict=True)]
    assert equal[fork] == [True] * 4 + [False] * 4
    assert equal[redo] == [True] * 4 + [False] + [True] * 3


def test_pictures_and_files_of_a_take_are_served(server, killed):
    number = killed[0]
    assert server.ask("GET", f"/api/takes/{number}/picture/90", status=200).startswith(b"\xff\xd8\xff")
    content = server.ask("GET", f"/api/takes/{number}/frames/1", status=200)
    assert int.from_bytes(content[:4], "little") == 12
    assert server.ask("GET", f"/api/takes/{number}/files/video", status=200)[4:8] == b"ftyp"
    part = server.ask("GET", f"/api/takes/{number}/files/video", status=206, range="bytes=0-9")
    assert len(part) == 10
    for path in ("..%2f..%2fetc%2fpasswd", "0001", "x", "9" * 5000):
        server.ask("GET", f"/api/takes/{path}/files/video", status=200 if path == "0001" else 404)
    server.ask("GET", "/page/..%2fserver.py", status=404)
    server.ask("GET", f"/api/takes/{number}/files/..%2ftake.json", status=404)


def test_the_example_of_the_docs_works(server):
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    found = {}
    exec(code.replace("http://127.0.0.1:8000", server.address.rstrip("/")), found)
    assert found["states"][found["number"]] == "done" and found["video"][4:8] == b"ftyp"


@pytest.mark.parametrize(
    "request_, words",
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"promt": "a"}, "no field 'promt'; did you mean 'prompt'?"),
        ({"method": "latentmen"}, "did you mean 'latentmem'?"),
        ({"frames": 3 * 10**5}, "more than the 600 s"),
        ({"frames": 25}, "no multiple of num_frame_per_block"),
        ({"seed": "1"}, "seed must be a whole number"),
        ({"prompt": "a" * 9000}, "at most 8000"),
        ({"prompt": "\ud800"}, "which is no text"),
        ({"settings": {"generator_ckpt": "/etc/passwd"}}, "'generator_ckpt' cannot be changed here"),
        ({"settings": {"model_kwargs.ae_ckpt": "/etc/passwd"}}, "cannot be changed here"),
        ({"settings": {"output_folder": "/tmp"}}, "cannot be changed here"),
        ({"settings": {"model_kwargs.memory_size": 99}}, "memory_size"),
        ({"start": "../../x.png"}, "no such upload"),
        ({"parent": 999, "at": "1s"}, "no take 999"),
        ({"at": "1s"}, "belong to a fork"),
        ({"prompt": "a[5s] | b[100s] | c"}, "would begin at latent frame"),
    ],
)
def test_a_wrong_request_is_one_line(server, request_, words):
    answer = server.ask("POST", "/api/takes", {"prompt": PROMPT} | request_, 400)
    assert words in answer["error"] and "\n" not in answer["error"]


def test_uploads_are_told_by_their_content_and_bounded(server):
    picture = to_jpeg(np.zeros((64, 96, 3), np.uint8))
    kept = server.ask("POST", "/api/uploads", picture, 201)
    assert (kept["width"], kept["height"], kept["kind"]) == (96, 64, "picture")
    assert "no picture or clip" in server.ask("POST", "/api/uploads", b"#EXTM3U\nhttp://x/", 400)["error"]
    assert "cannot be read" in server.ask("POST", "/api/uploads", picture[:100], 400)["error"]
    assert "no pictures" in server.ask("POST", "/api/uploads", b"\0\0\0\x18ftypmp42" + bytes(100), 400)["error"]
    header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big") + b"\0\0\0\x09IDAT" + bytes(99)
    assert "at most 16 million" in server.ask("POST", "/api/uploads", bomb, 400)["error"]
    server.ask("POST", "/api/uploads", bytes(1_000_001), 413)
    (number,) = server.submit(start=kept["name"], frames=6)
    server.finish(number)
    record = server.ask("GET", f"/api/takes/{number}/files/record", status=200)
    assert [given["frames"] for given in record["given"]] == [[0, 3]]


def test_the_queue_is_bounded_and_takes_can_be_stopped_gone_on_with_and_deleted(server, folder):
    numbers = []
    refused = None
    while refused is None and len(numbers) < 30:
        answer = server.ask("POST", "/api/takes", {"prompt": PROMPT, "seed": 20 + len(numbers)})
        if "error" in answer:
            refused = answer["error"]
        else:
            numbers.append(answer["takes"][0]["number"])
    assert "3 takes wait already" in refused
    places = [server.take(number)["place"] for number in numbers[-3:] if server.take(number)["state"] == "waiting"]
    assert places == sorted(places)
    server.ask("DELETE", f"/api/takes/{numbers[-1]}", status=400)
    for number in reversed(numbers):
        server.ask("POST", f"/api/takes/{number}/stop")
    for number in numbers:
        server.follow(number, lambda take: take["state"] in ("stopped", "done"))
    last = numbers[-1]
    assert server.take(last)["state"] == "stopped"
    server.ask("POST", f"/api/takes/{last}/resume", status=200)
    server.finish(last)
    server.ask("PATCH", f"/api/takes/{last}", {"title": "<b>a wolf"}, 200)
    assert server.take(last)["title"] == "<b>a wolf"
    for number in numbers:
        server.ask("DELETE", f"/api/takes/{number}", status=204)
    assert not (folder / f"{last:04d}").exists()
    server.ask("GET", f"/api/takes/{last}", status=404)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; the requests of the page are tested above")
def test_the_page_in_a_real_browser(server, folder, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(server.address)
        browser.until("document.body?.dataset.ready === '1'")
        shown = "document.querySelector('#stage canvas')"
        there = f"Number({shown}?.dataset.frame ?? -1)"
        row = "document.querySelector('#takes [aria-current=true]')?.innerText"
        # A prompt is typed, and frames arrive: their number rises, and the pixels change.
        browser.type("#prompt", f"<img src=x onerror=alert(1)> {PROMPT}")
        browser.type("#seconds", "45")  # so that it is not done before it is paused, on a busy machine neither
        browser.click("#make")
        browser.until(f"{there} >= 0 && {row}.includes('<img')")
        pixels = f"{shown}.toDataURL()"
        first = browser.run(pixels)
        # It is paused, and the prompt is switched before it goes on.
        browser.click("#pause")
        browser.until(f"{row}.includes('paused')")
        browser.type("#switch-prompt", OTHER)
        browser.click("#switch button")
        browser.click("#pause")
        browser.until(f"document.querySelectorAll('#segments span').length === 2 && {there} > 40")
        assert browser.run(pixels) != first
        browser.until("!document.querySelector('#fork').disabled")
        # A fork at 2 s, by keys: to the start, then by blocks.
        browser.run("document.querySelector('#track').focus()")
        for key in ("Home", "ArrowRight", "ArrowRight", "ArrowRight"):
            browser.press(key)
        browser.until("document.querySelector('#track').getAttribute('aria-valuetext').startsWith('block 3, 2.1 s')")
        assert browser.run("document.querySelectorAll('.boxes i').length") == 12
        browser.click("#fork")
        browser.run("document.querySelector('#method').value = 'native'")
        browser.click("#make")
        browser.until(f"{row}.includes('native · done')")
        # Two takes side by side, and where they first differ.
        browser.run(
            "(() => { const select = document.querySelector('.compare'); select.value = select.options[1].value;"
            "select.dispatchEvent(new Event('change')); })()"
        )
        browser.until("document.querySelectorAll('#stage canvas').length === 2")
        browser.until("document.querySelector('#differ').innerText.startsWith('first differ at')")
        count = browser.run("document.querySelectorAll('#takes .take').length")
        # After a reload all takes are there again; one is cancelled.
        browser.open(server.address)
        browser.until(f"document.querySelectorAll('#takes .take').length === {count}")
        browser.type("#prompt", PROMPT)
        browser.type("#seconds", "600")  # so that it does not end before it is cancelled
        browser.click("#make")
        browser.until("!document.querySelector('#make-controls').hidden")
        browser.click("#stop")
        browser.until(f"{row}.includes('stopped')")
        unnamed = (
            "[...document.querySelectorAll('button, input, select, textarea, canvas')].filter((one) =>"
            "!one.innerText && !one.labels?.length && !one.getAttribute('aria-label')).map((one) => one.outerHTML)"
        )
        assert browser.run(unnamed) == []
        assert browser.errors == []
    finally:
        browser.close()
