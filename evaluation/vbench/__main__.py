"""VBench-Long: export videos for it, print the paper's table: `python -m evaluation.vbench --help`."""

import argparse
import shlex
import sys
from pathlib import Path

from evaluation.compare.pairing import find, split_name
from evaluation.vbench.export import DIMENSIONS, command, export_method, exported, is_export, results_folder
from evaluation.vbench.published import Paper, changes, changes_table, papers_of, published_table
from evaluation.vbench.results import Scores, read_scores, table, warnings
from utils.command_line import Parser
from utils.errors import UserError, run
from utils.files import require_writable


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files are not always text
    args = _parse()
    args.action(args)


def export(args: argparse.Namespace) -> None:
    """Lay out each method's videos as VBench-Long wants them, and print the commands."""
    if not args.out:
        raise UserError("--out is empty; name a folder")
    methods, problems = find(args.videos)
    for problem in problems:
        print(f"{problem.place}: {problem.why}")
    for method in methods:
        folder = export_method(method, require_writable(args.out))
        print(f"{len(method.videos)} videos of {method.name} to {folder}")
    print("\nto run, in VBench-Long's own environment (docs/evaluation.md says how to install it):\n")
    for folder in exported(Path(args.out)):
        for dimension in DIMENSIONS:
            print(shlex.join(command(args.python, Path(args.checkout), folder, dimension)))


def tabulate(args: argparse.Namespace) -> None:
    """Print results as the papers' table, the published numbers beside them."""
    published = papers_of(args.seconds, args.backbone)
    own = {}
    for argument in args.results:
        for label, folder in _result_folders(argument):
            own[label] = read_scores(folder)
            for warning in warnings(folder):
                print(f"warning: {label}: {warning}")
    if own:
        print(table(own))
    for backbone, papers in published.items():
        _print_published(backbone, papers, args.seconds, own)


def _print_published(backbone: str, papers: list[Paper], seconds: int, own: dict[str, Scores]) -> None:
    """A backbone's published rows, what the methods change, and where the figures are from."""
    if not papers:
        return
    print(f"\npublished, {backbone}, {seconds} s; ! papers are 5 points or more apart:")
    print(published_table(papers, backbone))
    found = changes(papers, backbone, own)
    if found:
        print(f"\nagainst native, {backbone}, {seconds} s, in points; ! others found the opposite:")
        print(changes_table(found))
    for paper in papers:
        print(paper.describe())


def _result_folders(argument: str) -> list[tuple[str, Path]]:
    """`[NAME=]RESULTS` as labels and folders of result files, or one such file."""
    name, path = split_name(argument, "give a folder of VBench's *_eval_results.json")
    if not is_export(path):
        place = path.resolve()
        if place.name == "vbench":
            place = place.parent
        return [(name or place.stem, path)]
    methods = exported(path)
    if name and len(methods) == 1:
        return [(name, results_folder(methods[0]))]
    return [(method.name, results_folder(method)) for method in methods]


def _parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation.vbench",
        description="Lay out videos for VBench-Long, and print its results as the paper's table.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    one = actions.add_parser("export", help="lay out videos for VBench-Long and print its commands")
    one.add_argument("videos", nargs="+", metavar="[NAME=]VIDEOS")
    one.add_argument("--out", default="runs/vbench", metavar="FOLDER", help="[%(default)s]")
    one.add_argument("--checkout", default="VBench", metavar="FOLDER", help="of VBench's repository [%(default)s]")
    one.add_argument("--python", default="python", metavar="FILE", help="of VBench's own environment [%(default)s]")
    one.set_defaults(action=export)

    one = actions.add_parser("table", help="print the papers' table of results, beside the published ones")
    one.add_argument("results", nargs="*", metavar="[NAME=]RESULTS", help="export folder, folder of results, or file")
    one.add_argument("--backbone", default="", help="of the published tables [all]")
    one.add_argument("--seconds", type=int, default=60, metavar="N", help="of the published videos [%(default)s]")
    one.set_defaults(action=tabulate)
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
