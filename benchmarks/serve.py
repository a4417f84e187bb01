"""What a page costs: `python -m benchmarks.serve [key=value ...]`.

Starts a server, and makes the same take with nobody looking, with a program that reads all that a page reads, and,
where Chromium is installed, with the page open in it; in turn, several times. Prints frames a second of each, and the
time from the request to the first picture.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import Request, urlopen

from utils.errors import UserError, run
from utils.settings import Settings, load_settings, setting
from utils.table import markdown

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
SETTLED = 5.0  # seconds after which a page is drawn; nobody presses its button before
PROMPT = "A meadow at noon, the camera following a wolf right past a red house, a blue tree, a yellow tower."


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Settings):
    """What to run"""

    backbone: str = setting("tinyworld", "which models")
    method: str = setting("latentmem", "which memory")
    frames: int = setting(60, "latent frames of a take", at_least=3, at_most=10**5)
    rounds: int = setting(3, "takes of each kind", at_least=1, at_most=1000)
    readers: int = setting(5, "programs that read as a page does, in the row of several", at_least=1, at_most=60)


def main() -> None:
    config = load_settings(ServeConfig, None, sys.argv[1:])
    kinds = {
        "nobody": nobody,
        "a program that reads all": reading(1),
        f"{config.readers} of them": reading(config.readers),
    }
    if CHROMIUM is not None:
        kinds["the page in Chromium, on this machine"] = page
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    waits: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder, server(config, Path(folder)) as address:
        make(address, config, seed=0)  # the first take warms up
        coming = 2  # number of the next take
        for number in range(config.rounds):
            for name, look in kinds.items():
                with look(address, coming):
                    rate, wait = make(address, config, seed=1 + number)
                coming += 1
                rates[name].append(rate)
                waits[name].append(wait)
                print(f"{name}: {rate:.1f} frames a second, first picture after {wait:.2f} s", flush=True)
    rows = [("who looks", "frames a second", "first picture after")]
    for name in kinds:
        rows.append((name, f"{median(rates[name]):.1f}", f"{median(waits[name]):.2f} s"))
    print(f"\n{markdown(rows)}\nMedians of {config.rounds}.")


@contextmanager
def server(config: ServeConfig, folder: Path) -> Iterator[str]:
    """A server with its takes in `folder`; its address."""
    words = [config.backbone, config.method, f"output_folder={folder}", "longest=86400"]
    process = subprocess.Popen([sys.executable, "-m", "serve.server", *words], stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if line.startswith("open "):
                yield line.split()[1].rstrip("/")
                return
        raise UserError("the server did not start; the line above says why")
    finally:
        process.terminate()
        process.wait()


def make(address: str, config: ServeConfig, seed: int) -> tuple[float, float]:
    """One take: frames a second, and seconds from the request to its first picture."""
    began = time.monotonic()
    content = {"prompt": PROMPT, "method": config.method, "frames": config.frames, "seed": seed}
    number = ask(address, "/api/takes", content)["takes"][0]["number"]
    wait = None
    for take in follow(address):
        if take["number"] != number:
            continue
        if take["there"] and wait is None:
            urlopen(f"{address}/api/takes/{number}/picture/0").read()
            wait = time.monotonic() - began
        if take["state"] == "failed":
            raise UserError(take["error"])
        if take["state"] == "done":
            break
    record = json.load(urlopen(f"{address}/api/takes/{number}/files/record"))
    return record["frames"] / record["seconds"]["total"], wait


def ask(address: str, path: str, content: dict | None = None) -> dict[str, Any]:
    body = None if content is None else json.dumps(content).encode()
    return json.load(urlopen(Request(f"{address}{path}", body, {"content-type": "application/json"})))


def follow(address: str) -> Iterator[dict[str, Any]]:
    """News of takes as they come."""
    for line in urlopen(f"{address}/api/events"):
        if line.startswith(b"data: "):
            yield from json.loads(line[6:])["takes"]


@contextmanager
def nobody(address: str, number: int) -> Iterator[None]:
    yield


def reading(count: int) -> Any:
    """Programs that ask for all that a page asks for, as soon as it is there."""

    @contextmanager
    def look(address: str, number: int) -> Iterator[None]:
        ended = threading.Event()
        threads = [threading.Thread(target=read_all, args=(address, ended), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        yield
        ended.set()

    return look


def read_all(address: str, ended: threading.Event) -> None:
    read: dict[int, int] = {}
    for take in follow(address):
        number = take["number"]
        while not ended.is_set() and take["state"] == "making" and read.get(number, 0) < take["blocks"]:
            block = read.get(number, 0)
            urlopen(f"{address}/api/takes/{number}/blocks?from={block}").read()
            urlopen(f"{address}/api/takes/{number}/frames/{block}").read()
            read[number] = block + 1
        if ended.is_set():
            return


@contextmanager
def page(address: str, number: int) -> Iterator[None]:
    """The page, open at a take in a browser without a window."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [CHROMIUM, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", f"{address}/#{number}"]
        browser = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in browser.stderr:
            if "DevTools listening" in line:
                break
        threading.Thread(target=browser.stderr.read, daemon=True).start()
        time.sleep(SETTLED)
        try:
            yield
        finally:
            browser.kill()
            browser.wait()


if __name__ == "__main__":
    run(main)
