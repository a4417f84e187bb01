"""VBench-Long: export videos for it, run it, print the paper's table: `python -m evaluation.vbench --help`."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from evaluation.arguments import Parser
from evaluation.match import Method, find
from evaluation.report import align
from evaluation.statistics import average_ranks
from utils.errors import UserError, did_you_mean, run
from utils.files import require_file, require_writable, write_json

DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
LONG_RANGE = DIMENSIONS[:2]  # fused from a score within clips and one between clips
PUBLISHED = Path(__file__).parent / "published" / "vbench_long.json"
INSTALL = "docs/evaluation.md says how to install VBench-Long in an environment of its own"

Scores = dict[str, float | None]  # dimension -> percent, None where it was not run


def main() -> None:
    args = _parse()
    args.action(args)


def export(args: argparse.Namespace) -> None:
    """Lay out each method's videos as VBench-Long wants them, and print the commands."""
    methods, problems = find(args.videos)
    for problem in problems:
        print(f"{problem.place}: {problem.why}")
    for method in methods:
        folder = export_method(method, require_writable(args.out))
        print(f"{len(method.videos)} videos of {method.name} to {folder}")
    print("\nto run here: python -m evaluation.vbench run", args.out, "--vbench CHECKOUT --python PYTHON")
    print("or by hand:\n")
    for folder in exported(args.out):
        for dimension in DIMENSIONS:
            print(shlex.join(command("python", Path("VBench"), folder, dimension)))


def run_all(args: argparse.Namespace) -> None:
    """Run every dimension that has no result yet, each in a process of its own, so that one failure costs one."""
    script = require_file(Path(args.vbench) / "vbench2_beta_long" / "eval_long.py", "VBench-Long's", INSTALL)
    for name in ("slow_fast_params.yaml", "clip_length_mix.yaml"):
        require_file(script.parent / "configs" / name, "VBench-Long's", f"PyPI's vbench lacks it; {INSTALL}")
    if shutil.which(args.python) is None:
        raise UserError(f"--python {args.python} is not there; {INSTALL}")
    failed = []
    for folder in exported(args.folder):
        for dimension in args.dimensions:
            if read_scores(results_folder(folder))[dimension] is not None:
                print(f"{folder.name}: {dimension} is there already", flush=True)
                continue
            words = command(args.python, Path(args.vbench), folder, dimension)
            print(shlex.join(words), flush=True)
            if subprocess.run(words).returncode or read_scores(results_folder(folder))[dimension] is None:
                failed.append(f"{folder.name} {dimension}")
    print(table({folder.name: read_scores(results_folder(folder)) for folder in exported(args.folder)}))
    if failed:
        raise UserError(f"VBench failed on {', '.join(failed)}; its own lines above say why; run this again to go on")


def tabulate(args: argparse.Namespace) -> None:
    """Print results as the paper's table, the published numbers beside them."""
    own = {}
    for argument in args.results:
        name, equals, path = argument.rpartition("=")
        path = Path(path if equals else argument)
        if not path.exists():
            raise UserError(f"{path} does not exist; give a folder of VBench's *_eval_results.json")
        folders = [results_folder(folder) for folder in exported(path)] if _is_export(path) else [path]
        for folder in folders:
            label = name or (folder.parent.name if folder.name == "vbench" else folder.stem)
            own[label] = read_scores(folder)
            for warning in warnings(folder):
                print(f"warning: {label}: {warning}")
    if own:
        print(table(own))
    published = json.loads(PUBLISHED.read_text())
    chosen = published["seconds_60"]
    if args.backbone and args.backbone not in chosen:
        raise UserError(
            f"--backbone {args.backbone} is not one of {', '.join(chosen)}{did_you_mean(args.backbone, chosen)}"
        )
    for backbone in [args.backbone] if args.backbone else chosen:
        print(f"\npublished, {backbone}, 60 s ({published['source'].partition(',')[0]}):")
        print(table(published_scores(backbone)))


def export_method(method: Method, out: Path) -> Path:
    """Link a method's videos as `00012-0.mp4` in a folder of their own.

    VBench-Long cuts names at the first underscore, expects them to end in a number, and takes up the clips that
    it finds from another time: names get no underscore, and a folder made for other videos is refused.
    """
    folder = out / method.name.replace("/", "-")
    prompts = list(dict.fromkeys(prompt for prompt, _ in sorted(method.videos)))
    numbers = {p: int(p) if p.isdecimal() else i for i, p in enumerate(prompts)}
    if len(set(numbers.values())) < len(prompts):
        numbers = {prompt: i for i, prompt in enumerate(prompts)}
    names = {key: f"{numbers[key[0]]:05d}-{key[1]}.mp4" for key in sorted(method.videos)}
    content = {name: _identity(method.videos[key]) for key, name in names.items()}
    record = folder / "names.json"
    if folder.exists() and (not record.exists() or json.loads(record.read_text()) != content):
        raise UserError(
            f"{folder} was made for other videos, whose clips VBench would take up; delete it or choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for key, name in names.items():
        target = folder / name
        target.unlink(missing_ok=True)
        try:
            os.link(method.videos[key].resolve(), target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(method.videos[key], target)
    write_json(record, content)
    return folder


def command(python: str, root: Path, folder: Path, dimension: str) -> list[str]:
    """The command that evaluates one dimension of one exported folder, with every option that matters.

    `--dev_flag` is what gives the long-range half its weight (from `slow_fast_params.yaml`) and its feature
    extractors; without it VBench-Long sets that weight to 0 whatever else is given.
    """
    long = root / "vbench2_beta_long"
    options = {
        "--videos_path": folder.resolve(),
        "--output_path": results_folder(folder).resolve() / dimension,
        "--dimension": dimension,
        "--mode": "long_custom_input",
        "--full_json_dir": root / "vbench" / "VBench_full_info.json",
        "--clip_length_config": "clip_length_mix.yaml",
        "--slow_fast_eval_config": long / "configs" / "slow_fast_params.yaml",
        "--subject_mapping_file_path": long / "configs" / "subject_mapping_table.yaml",
        "--background_mapping_file_path": long / "configs" / "background_mapping_table.yaml",
        "--sb_clip2clip_feat_extractor": "dinov2",
        "--bg_clip2clip_feat_extractor": "dreamsim",
        "--imaging_quality_preprocessing_mode": "longer",
    }
    words = [str(word) for option in options.items() for word in option]
    return [python, str(long / "eval_long.py"), *words, "--dev_flag"]


def results_folder(folder: Path) -> Path:
    """Where the results of an exported folder go: VBench does not look into folders of this name."""
    return folder / "vbench"


def exported(out: str | Path) -> list[Path]:
    """Exported methods in a folder, or that folder itself."""
    out = Path(out)
    folders = (
        [out]
        if _is_export(out) and (out / "names.json").exists()
        else sorted(p.parent for p in out.glob("*/names.json"))
    )
    if not folders:
        raise UserError(f"{out} holds no exported videos; python -m evaluation.vbench export VIDEOS --out {out}")
    return folders


def read_scores(folder: Path) -> Scores:
    """Scores in percent from all `*_eval_results.json` in a folder (or one such file), newest first.

    A dimension that was not run is None, never 0.
    """
    scores: Scores = dict.fromkeys(DIMENSIONS)
    for _, results in _results(folder):
        for dimension in DIMENSIONS:
            if scores[dimension] is None and dimension in results:
                value = results[dimension][0]
                if not isinstance(value, int | float) or not 0 <= value <= 1:
                    raise UserError(f"{folder}: {dimension} is {value}, not between 0 and 1; is it of another VBench?")
                scores[dimension] = 100.0 * value
    return scores


def warnings(folder: Path) -> list[str]:
    """What is wrong with a result although VBench wrote it."""
    found = []
    for path, results in _results(folder):
        for dimension in LONG_RANGE:
            details = results.get(dimension, [None, []])[1]
            fused = [one for one in details if isinstance(one, dict) and "clip2clip_score" in one]
            lost = sum(one["clip2clip_score"] == 0 for one in fused)
            if lost:
                found.append(f"{path.name}: {dimension} found no long-range score of {lost} of {len(fused)} videos")
            elif fused and all(one["video_results"] == one["inclip_score"] for one in fused):
                found.append(f"{path.name}: {dimension} was run without --dev_flag, its long-range half counts 0")
    return found


def table(scores: Mapping[str, Scores]) -> str:
    """The paper's table; average ranks are over the dimensions that every row has, and say how many those are."""
    ranks, used = average_ranks(scores, dict.fromkeys(DIMENSIONS, 1))
    lines = [["", *(name.replace("_", " ") for name in DIMENSIONS), "average rank"]]
    for method, row in scores.items():
        rank = f"{ranks[method]:.2f}" if used and len(scores) > 1 else "-"
        if used and len(used) < len(DIMENSIONS) and rank != "-":
            rank += f" (of {len(used)})"
        cells = ["-" if row.get(name) is None else f"{row[name]:.2f}" for name in DIMENSIONS]
        lines.append([method, *cells, rank])
    return align(lines)


def published_scores(backbone: str) -> dict[str, Scores]:
    """The paper's 60 s numbers of one backbone: method -> dimension -> percent."""
    published = json.loads(PUBLISHED.read_text())
    rows = published["seconds_60"][backbone]
    return {method: dict(zip(published["dimensions"], row, strict=True)) for method, row in rows.items()}


def _results(folder: Path) -> list[tuple[Path, dict]]:
    """Result files with their content, newest first."""
    files = [folder] if folder.is_file() else list(folder.rglob("*_eval_results.json"))
    read = []
    for path in sorted(files, key=_age):
        try:
            content = json.loads(path.read_text())
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise UserError(f"{path} is broken; delete it and run VBench again")
        read.append((path, content))
    return read


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _is_export(path: Path) -> bool:
    return path.is_dir() and ((path / "names.json").exists() or any(path.glob("*/names.json")))


def _identity(path: Path) -> dict:
    status = path.stat()
    return {"file": str(path.resolve()), "bytes": status.st_size, "changed": status.st_mtime}


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m evaluation.vbench", description="Run VBench-Long and print the paper's table.")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    one = actions.add_parser("export", help="lay out videos for VBench-Long and print its commands")
    one.add_argument("videos", nargs="+", metavar="[NAME=]VIDEOS")
    one.add_argument("--out", default="runs/vbench", metavar="FOLDER", help="[%(default)s]")
    one.set_defaults(action=export)

    one = actions.add_parser("run", help="run VBench-Long on exported videos, dimension by dimension")
    one.add_argument("folder", nargs="?", default="runs/vbench", metavar="FOLDER", help="[%(default)s]")
    one.add_argument("--vbench", required=True, metavar="CHECKOUT", help="a clone of github.com/Vchitect/VBench")
    one.add_argument("--python", required=True, metavar="PYTHON", help="the interpreter of VBench's environment")
    one.add_argument("--dimensions", nargs="+", default=DIMENSIONS, choices=DIMENSIONS, metavar="DIMENSION")
    one.set_defaults(action=run_all)

    one = actions.add_parser("table", help="print the paper's table of results, beside the published one")
    one.add_argument("results", nargs="*", metavar="[NAME=]RESULTS", help="export folder, folder of results, or file")
    one.add_argument("--backbone", default="", help="of the published table [all]")
    one.set_defaults(action=tabulate)
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
