"""Write docs/settings.md, which lists the settings of the main commands: `python -m docs.settings_page`."""

from pathlib import Path

from ae.settings import TrainSettings
from evaluation.futures.settings import FuturesSettings
from pipeline.config import CorpusConfig, RunConfig
from serve.settings import ServeSettings
from tinyworld.benchmark import BenchmarkSettings
from utils.errors import run
from utils.files import atomic
from utils.settings import Described, described
from utils.table import markdown

PAGE = Path(__file__).parent / "settings.md"
HEADING = ("setting", "default", "meaning")
INTRODUCTION = """\
# Settings

`python -m docs.settings_page` makes this page from the definitions of the settings.

A setting is given as `key=value` on the command line or as a key of the YAML file. A dot names a group of the file:
`bank.capacity=200` is `capacity` under `bank:`. The command line counts before the file, and the file before the
default. The shipped files in `configs/` and `ae/configs/` set many values that differ from these defaults. Every
command lists its own settings with `--help`.
"""
SECTIONS = (  # heading, words below it, settings, settings that an earlier section has listed
    ("Inference", "`bash inference.sh BACKBONE METHOD`, from `configs/BACKBONE_METHOD.yaml`.", RunConfig, None),
    (
        "Corpus of latents",
        "`bash generate_latent.sh`, from `configs/generate_latent.yaml`. All settings of inference, and these.",
        CorpusConfig,
        RunConfig,
    ),
    ("Server", "`bash serve.sh BACKBONE METHOD`, beside the settings of inference.", ServeSettings, None),
    (
        "Futures of one past",
        "`bash evaluate.sh futures BACKBONE`, beside the settings of inference.",
        FuturesSettings,
        None,
    ),
    ("Training of the retrieval encoder", "`bash train_ae_delta.sh`, from `ae/configs/`.", TrainSettings, None),
    (
        "Benchmark of tinyworld",
        "`bash benchmark_tinyworld.sh`; its rows are in `configs/tinyworld_benchmark.yaml`.",
        BenchmarkSettings,
        None,
    ),
)


def page() -> str:
    """The text of docs/settings.md."""
    parts = [INTRODUCTION]
    for heading, words, schema, listed in SECTIONS:
        parts.append(f"## {heading}\n\n{words}\n")
        known = described(listed) if listed else []
        new = [entry for entry in described(schema) if entry not in known]
        for group, entries in _grouped(new).items():
            parts.append(f"### {group}\n\n{_table(entries)}\n")
    return "\n".join(parts)


def _grouped(entries: list[Described]) -> dict[str, list[Described]]:
    """The entries of each group, in the order in which groups first appear."""
    groups: dict[str, list[Described]] = {}
    for entry in entries:
        groups.setdefault(entry.group.removesuffix("."), []).append(entry)
    return groups


def _table(entries: list[Described]) -> str:
    """The entries as a Markdown table."""
    rows = [HEADING]
    for entry in entries:
        default = f"`{entry.default}`" if entry.default else ""
        rows.append((f"`{entry.name}`", default, entry.meaning))
    return markdown(rows)


def main() -> None:
    with atomic(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    run(main)
