"""Compare folders of videos: `python -m evaluation VIDEOS_A VIDEOS_B ...`."""

import argparse
import os

from evaluation import consistency
from evaluation.arguments import Parser
from evaluation.evaluate import evaluate, measure_all
from evaluation.match import find
from evaluation.page import build
from evaluation.reader import require_ffmpeg
from evaluation.report import describe
from utils.errors import UserError, run
from utils.files import atomic, require_writable, write_json

EPILOG = """\
Each folder is a method. Videos are matched by prompt and sample: 00012-0.mp4 in one folder with 00012-0.mp4 in the
others; other names must be equal. One mp4 file in place of each folder compares these files.

Subject and background consistency need the weights of DINO and CLIP. "auto" takes them where they are at hand (torch
hub's or Hugging Face's cache) and says so where they are not; a FOLDER holds a model saved by transformers.

VBench-Long: python -m evaluation.vbench --help"""


def main() -> None:
    args = _parse()
    require_ffmpeg()
    methods, problems = find(args.videos)
    out = require_writable(args.out)
    models, notes = consistency.load(args.dino, args.clip)
    measured, unreadable = measure_all(methods, args.workers, print_line)
    if not any(measured.values()):
        raise UserError(f"none of {len(unreadable)} videos can be read; {unreadable[0].place} {unreadable[0].why}")
    for name, model in models.items():
        for method in methods:
            for key, found in measured[method.name].items():
                found.scores[name] = consistency.score(model, method.videos[key])
                print_line(f"{method.name}/{method.videos[key].name}: {name} {found.scores[name]:.2f}")
    result = evaluate(methods, measured, problems + unreadable, models, args.seed)
    result.notes += notes
    write_json(out / "report.json", result.to_json())
    with atomic(out / "report.html") as file:
        file.write_text(build(result, out, args.embed), encoding="utf-8")
    print(f"\n{describe(result)}\n\nalso in {out}/report.html and report.json")


def print_line(line: str) -> None:
    print(line, flush=True)


def _parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation",
        description="Measure how videos drift over time, and compare methods.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("videos", nargs="+", metavar="[NAME=]VIDEOS", help="a folder of mp4 files, or an mp4 file")
    add("--out", default="runs/report", metavar="FOLDER", help="for report.html and report.json [%(default)s]")
    add("--embed", action="store_true", help="put the videos into report.html instead of linking them")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="videos at a time [%(default)s]")
    add("--dino", default="auto", metavar="auto|off|FOLDER", help="for subject consistency [%(default)s]")
    add("--clip", default="auto", metavar="auto|off|FOLDER", help="for background consistency [%(default)s]")
    add("--seed", type=int, default=0, metavar="N", help="of the intervals and tests [%(default)s]")
    args = parser.parse_args()
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}; give 1 or more")
    return args


if __name__ == "__main__":
    run(main)
