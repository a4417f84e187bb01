"""Judge retrieval rules on held-out latents: `python -m evaluation.retrieval --data FOLDER --ckpt FILE ...`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.command_line import Parser
from utils.errors import UserError, run
from utils.files import require_file, require_writable, write_json
from utils.table import markdown

if TYPE_CHECKING:
    from evaluation.retrieval.judge import Rule

MOST_SEEDS = 1000
EPILOG = """\
Rules: random, recency, uniform, avg_pool, and one for each kind of checkpoint, named after its training: AE
(reconstruction only), AE+delta, AE+delta+smooth. NAME=FILE names it otherwise; checkpoints of one name are its seeds.
Of avg_pool and of each encoder the most similar frames are judged, and `around`: those beside the most similar one.

A checkpoint of CONFIG=ae/configs/utility.yaml is the rule `useful`. Where latent_000007.gains.json lies beside
latent_000007.pt (python -m evaluation.retrieval.gains), the rules are judged by what their frames gain as well.

Where latent_000007.truth.json lies beside latent_000007.pt, it is known which frames show the same place:
{"camera": [left edge of the view, for each latent frame], "view": its width, "loop": length of the scene or null}"""


def main() -> None:
    args = _parse()
    checkpoints = _split_names(args.ckpt)

    from evaluation.retrieval.engine import make_policy
    from evaluation.retrieval.judge import judge, table
    from evaluation.retrieval.plot import draw
    from pipeline.preflight import find_device

    if args.block < 1:
        raise UserError(f"--block {args.block}: a block has at least one frame")
    policy = make_policy(args.local, args.sink, args.memory, args.exclude, args.block)
    device = find_device(args.device)
    rules, paths = _load(args, checkpoints, device)
    out = require_writable(args.out)
    report = judge(rules, paths, policy, args.overlap, device)
    write_json(out / "evaluation.json", report)
    draw(report, out / "evaluation.png")
    print(f"{report['clips']} clips, {report['blocks']} blocks with a choice\n")
    print(markdown(table(report["rules"])))
    print(f"\nalso in {out}/evaluation.json and .png")


def _parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation.retrieval",
        description="Judge retrieval rules on held-out latents.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("--data", required=True, metavar="FOLDER", help="folder of latent_*.pt, [F, C, H, W] each")
    add("--ckpt", nargs="+", default=[], metavar="[NAME=]FILE", help="encoder checkpoints")
    add("--all", action="store_true", help="judge on every file, also on those a checkpoint was trained on")
    add("--out", default="runs/evaluation", metavar="FOLDER", help="for evaluation.json and .png [%(default)s]")
    add("--seeds", type=int, default=3, metavar="N", help="draws of the random rule [%(default)s]")
    add("--overlap", type=float, default=0.75, help="shared part of two views of one place [%(default)s]")
    add("--device", default="auto", help="auto, cpu or cuda [%(default)s]")
    add("--local", type=int, default=18, metavar="L", help="local_attn_size, in latent frames [%(default)s]")
    add("--sink", type=int, default=1, metavar="S", help="sink_size [%(default)s]")
    add("--memory", type=int, default=6, metavar="K", help="memory_size: frames to retrieve [%(default)s]")
    add("--exclude", type=int, default=5, metavar="R", help="recent_exclude [%(default)s]")
    add("--block", type=int, default=3, metavar="N", help="num_frame_per_block [%(default)s]")
    args = parser.parse_args()
    if not 1 <= args.seeds <= MOST_SEEDS:
        raise UserError(f"--seeds is {args.seeds}; give 1 to {MOST_SEEDS}")
    if args.memory < 1:
        raise UserError(f"--memory is {args.memory}; give 1 or more, for nothing is retrieved without")
    if not 0 < args.overlap <= 1:
        raise UserError(f"--overlap is {args.overlap}; give a part above 0, and 1 at most")
    if not Path(args.data).is_dir():
        raise UserError(f"--data {args.data} is not a folder; make a corpus with generate_latent.sh, or name another")
    return args


def _split_names(checkpoints: list[str]) -> list[tuple[str, Path]]:
    """`NAME=FILE` or `FILE` to (name or "", path); a file must exist."""
    found = []
    for text in checkpoints:
        name, equals, file = text.partition("=")
        if not equals or Path(text).is_file():
            name, file = "", text
        path = require_file(file, "encoder checkpoint", "train one with train_ae_delta.sh or correct --ckpt")
        found.append((name, path))
    return found


def _load(
    args: argparse.Namespace, checkpoints: list[tuple[str, Path]], device: Any
) -> tuple[list["Rule"], list[Path]]:
    """The rules, in the ablation's order, and the files that none of their encoders was trained on."""
    from ae.dataset import find_latents, open_latents
    from ae.model import read_checkpoint
    from evaluation.retrieval.engine import Describe, load_average, load_descriptor, load_useful
    from evaluation.retrieval.judge import BASELINE, Rule

    paths = find_latents(args.data)
    shape = open_latents(paths[0]).shape[1:]
    average = load_average()
    described: dict[str, list[Describe]] = {BASELINE: [average]}
    trained_on: set[str] = set()
    for name, path in checkpoints:
        content = read_checkpoint(path)
        name = name or training_name(content.get("config") or {})
        if name == BASELINE:
            raise UserError(f"a checkpoint is named {BASELINE}, as the rule without one; give it another name")
        is_asking = (content.get("config") or {}).get("objective") == "usefulness"
        loader = load_useful if is_asking else load_descriptor
        described.setdefault(name, []).append(loader(path, shape, device))
        if "files" in content:
            trained_on.update(content["files"]["train"])
        else:
            print(f"{path} does not say which files it was trained on: no file is left out for it")
    rules = [
        Rule("random", [average] * args.seeds, "random"),
        Rule("recency", [average], "recency"),
        Rule("uniform", [average], "uniform"),
    ]
    for name, seeds in described.items():
        rules.append(Rule(name, seeds))
    for name, seeds in described.items():
        rules.append(Rule(f"{name}, around", seeds, "around"))
    held_out = [path for path in paths if args.all or path.name not in trained_on]
    if not held_out:
        raise UserError(f"the encoders were trained on every file of {args.data}; give another folder, or --all")
    return rules, held_out


def training_name(config: Mapping[str, Any]) -> str:
    """The ablation's name for an encoder, after the losses it was trained with."""
    if config.get("objective") == "usefulness":
        return "useful"
    parts = ["AE"]
    for part in ("delta", "smooth"):
        if config.get(f"{part}_weight"):
            parts.append(part)
    return "+".join(parts)


if __name__ == "__main__":
    run(main)
