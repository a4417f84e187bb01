"""Judge retrieval rules on held-out latents: `python -m ae.evaluate --data FOLDER --ckpt FILE ...`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, run
from utils.files import require_writable, write_json

if TYPE_CHECKING:
    from ae.judge import Rule

EPILOG = """\
Rules: random, recency, uniform, avg_pool, and one for each kind of checkpoint, named after its training: AE
(reconstruction only), AE+delta, AE+delta+smooth. NAME=FILE names it otherwise; checkpoints of one name are its seeds.
Of avg_pool and of each encoder the most similar frames are judged, and `around`: those beside the most similar one.

Where latent_000007.truth.json lies beside latent_000007.pt, it is known which frames show the same place:
{"camera": [left edge of the view, for each latent frame], "view": its width, "loop": length of the scene or null}"""


def main() -> None:
    args = _parse()
    import torch

    from ae.judge import judge
    from ae.plots import draw_evaluation
    from pipeline.context import Layout, RetrievedMemory

    out = require_writable(args.out)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    policy = RetrievedMemory(Layout(args.local, args.sink, args.memory, args.exclude, args.block))
    rules, paths = _load(args, device)
    report = judge(rules, paths, policy, args.overlap, device)
    write_json(out / "evaluation.json", report)
    draw_evaluation(report, out / "evaluation.png")
    print(f"{report['clips']} clips, {report['blocks']} blocks with a choice\n\n{_table(report['rules'])}")
    print(f"\nalso in {out}/evaluation.json and .png")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ae.evaluate",
        description="Judge retrieval rules on held-out latents.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", required=True, metavar="FOLDER", help="folder of latent_*.pt, [F, C, H, W] each")
    add("--ckpt", nargs="+", default=[], metavar="[NAME=]FILE", help="encoder checkpoints")
    add("--all", action="store_true", help="judge on every file, also on those a checkpoint was trained on")
    add("--out", default="runs/evaluation", metavar="FOLDER", help="for evaluation.json and .png [%(default)s]")
    add("--seeds", type=int, default=3, metavar="N", help="draws of the random rule [%(default)s]")
    add("--overlap", type=float, default=0.75, help="shared part of two views of one place [%(default)s]")
    add("--device", default="", help="[cuda if there is one]")
    add("--local", type=int, default=18, metavar="L", help="local_attn_size, in latent frames [%(default)s]")
    add("--sink", type=int, default=1, metavar="S", help="sink_size [%(default)s]")
    add("--memory", type=int, default=6, metavar="K", help="memory_size: frames to retrieve [%(default)s]")
    add("--exclude", type=int, default=5, metavar="R", help="recent_exclude [%(default)s]")
    add("--block", type=int, default=3, metavar="N", help="num_frame_per_block [%(default)s]")
    return parser.parse_args()


def _load(args: argparse.Namespace, device: str) -> tuple[list["Rule"], list[Path]]:
    """The rules, in the ablation's order, and the files that none of their encoders was trained on."""
    from ae.dataset import find_latents, open_latents
    from ae.judge import BASELINE, Noise, Rule
    from ae.model import load_encoder, read_checkpoint
    from pipeline.retrieval import SELECTIONS, AutoEncoder, AvgPool

    paths = find_latents(args.data)
    shape = open_latents(paths[0]).shape[1:]
    encoders: dict[str, list[AutoEncoder]] = {}
    trained_on: set[str] = set()
    for text in args.ckpt:
        name, _, path = text.rpartition("=")
        content = read_checkpoint(path)
        encoder = AutoEncoder(load_encoder(path, device, shape))
        encoders.setdefault(name or _training(content.get("config") or {}), []).append(encoder)
        if "files" in content:
            trained_on |= set(content["files"]["train"])
        else:
            print(f"{path} does not say which files it was trained on: no file is left out for it")
    similarity, around = SELECTIONS["similarity"], SELECTIONS["around"]
    if BASELINE in encoders:
        raise UserError(f"a checkpoint is named {BASELINE}, as the rule without one; give it another name")
    described = {BASELINE: [AvgPool()], **encoders}
    rules = [
        Rule("random", [Noise(seed) for seed in range(args.seeds)], similarity),
        Rule("recency", [AvgPool()], SELECTIONS["recency"]),
        Rule("uniform", [AvgPool()], SELECTIONS["uniform"]),
        *(Rule(name, list(seeds), similarity) for name, seeds in described.items()),
        *(Rule(f"{name}, around", list(seeds), around) for name, seeds in described.items()),
    ]
    held_out = paths if args.all else [path for path in paths if path.name not in trained_on]
    if not held_out:
        raise UserError(f"the encoders were trained on every file of {args.data}; give another folder, or --all")
    return rules, held_out


def _training(config: Mapping[str, Any]) -> str:
    """The ablation's name for an encoder, after the losses it was trained with."""
    return "+".join(["AE", *(part for part in ("delta", "smooth") if config.get(f"{part}_weight"))])


def _table(rules: Mapping[str, Any]) -> str:
    """The report as a Markdown table: a mean and its 95% interval in each cell."""
    metrics = [
        name for name in next(iter(rules.values()))["metrics"] if any(r["metrics"][name] for r in rules.values())
    ]
    lines = [["rule", "seeds", *metrics], ["---"] * (2 + len(metrics))]
    for name, rule in rules.items():
        lines.append([name, str(rule["seeds"]), *(_cell(rule["metrics"][metric]) for metric in metrics)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(interval: list[float] | None) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*interval) if interval else "-"


if __name__ == "__main__":
    run(main)
