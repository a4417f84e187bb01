"""Compare folders of videos: `python -m evaluation VIDEOS_A VIDEOS_B ...`."""

import argparse
import os
import sys
from pathlib import Path

from evaluation.report.write import report
from utils.command_line import Parser
from utils.errors import UserError, run

EPILOG = """\
Each folder is a method. Videos are paired by prompt and sample: 00012-0.mp4 in one folder with 00012-0.mp4 in the
others; other names must be equal. One video file in place of each folder compares these files.

VBench-Long: python -m evaluation.vbench --help"""


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files are not always text
    args = _parse()
    report(args.videos, Path(args.out), args.workers, args.seed, args.embed)


def _parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation",
        description="Measure how videos drift over time, and compare methods.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("videos", nargs="+", metavar="[NAME=]VIDEOS", help="a folder of videos, or a video")
    add("--out", default="runs/report", metavar="FOLDER", help="for report.html and report.json [%(default)s]")
    add("--embed", action="store_true", help="put the videos into report.html instead of linking them")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="videos at a time [%(default)s]")
    add("--seed", type=int, default=0, metavar="N", help="of the intervals and tests [%(default)s]")
    for option, measure in (("--dino", "subject"), ("--clip", "background")):
        # Scripts from when these were measured may go on to turn them off.
        add(option, default="off", help=argparse.SUPPRESS, dest=measure)
    args = parser.parse_args()
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}; give 1 or more")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; give 0 or more")
    if not args.out:
        raise UserError("--out is empty; name a folder")
    if Path(args.out).is_file():
        raise UserError(f"--out {args.out} is a file; name a folder")
    for option, choice in (("--dino", args.subject), ("--clip", args.background)):
        if choice != "off":
            raise UserError(f"{option} {choice}: this consistency is not measured any more; leave {option} out")
    return args


if __name__ == "__main__":
    run(main)
