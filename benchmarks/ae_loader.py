"""Time to load training chunks, mapped against whole files: `python -m benchmarks.ae_loader [--files 40]`.

Writes latent files of the published size to a temporary folder and reads a chunk of each twice: with the files in
the page cache, and after the kernel was asked to forget them, so that they come from the disk. Prints medians.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from utils.command_line import Parser, whole_number
from utils.errors import UserError, run


def main() -> None:
    parser = Parser(prog="python -m benchmarks.ae_loader", description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=whole_number(1, 100_000), default=40)
    parser.add_argument("--frames", type=whole_number(8, 10_000), default=90, help="latent frames a file [%(default)s]")
    parser.add_argument("--folder", help="where to write the files for the time being [the system's temporary folder]")
    args = parser.parse_args()
    if args.folder is not None and not Path(args.folder).is_dir():
        raise UserError(f"--folder {args.folder} is no folder; name one, or leave it out")
    import torch

    from ae.dataset import LatentChunks

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        paths = _write(Path(folder), args.files, args.frames)
        chunks = LatentChunks(paths, seq_len=8)
        readers: dict[str, Callable[[int], object]] = {
            "mapped": lambda i: chunks[i, 7 * i],
            "whole file": lambda i: torch.load(paths[i], weights_only=True)[7 * i % 80 :][:8].float(),
        }
        print("| a chunk, files | mapped | whole file | ratio |\n| --- | --- | --- | --- |")
        for state, prepare in (("in the page cache", lambda path: path.read_bytes()), ("on disk", _forget)):
            mapped, whole = _medians(paths, readers, prepare)
            print(f"| {state} | {1000 * mapped:.2f} ms | {1000 * whole:.2f} ms | {whole / mapped:.1f} |")


def _medians(
    paths: list[Path], readers: dict[str, Callable[[int], object]], prepare: Callable[[Path], object]
) -> list[float]:
    """Median seconds of each reader, which take turns."""
    seconds = {name: [] for name in readers}
    for i, path in enumerate(paths):
        for name, read in readers.items():
            prepare(path)
            start = time.perf_counter()
            read(i)
            seconds[name].append(time.perf_counter() - start)
    return list(map(statistics.median, seconds.values()))


def _write(folder: Path, files: int, frames: int) -> list[Path]:
    import torch

    latents = torch.randn(frames, 16, 60, 104).bfloat16()
    paths = []
    for number in range(files):
        path = folder / f"latent_{number:06d}.pt"
        torch.save(latents, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # only clean pages can be forgotten
        paths.append(path)
    return paths


def _forget(path: Path) -> None:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    run(main)
