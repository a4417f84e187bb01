"""A run's command line: the config, and the settings beside it."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from pipeline.config import RETIRED, RunConfig, VideoSettings, load_config
from pipeline.downloads import require_downloaded
from pipeline.parent import inherited, read_parent
from utils.command_line import as_overrides
from utils.errors import UserError
from utils.processes import rank
from utils.settings import print_help, retired_keys


def parse_command_line(schema: type[RunConfig] = RunConfig) -> RunConfig:
    """`CONFIG.yaml [key=value ...]` as typed, to settings; notes what the file sets in vain.

    The published commands' flags are understood, too: `--config_path CONFIG.yaml`, `--gpu_id 0 --num_shards 8` for
    one share of the work; `--reverse` changes nothing, as every file is the same in any order.
    """
    flags, overrides = as_overrides(sys.argv[1:], flags=("config_path", "gpu_id", "num_shards", "reverse"))
    if {"-h", "--help"} & set(overrides) or not sys.argv[1:]:
        print_help(schema)
        sys.exit(0 if sys.argv[1:] else 2)
    path = flags.get("config_path") or (overrides.pop(0) if overrides and "=" not in overrides[0] else None)
    if path is None:
        raise UserError("no config is named; give one first, such as configs/tinyworld_latentmem.yaml")
    _take_share(flags)
    _require_one_prompt(overrides)
    config = load_config(path, _with_parent(overrides), schema)
    if config.prompt is None and not config.data_path and not config.parent:
        raise UserError(f'config {path} names no data_path; set it, or give one prompt with prompt="..."')
    _require_downloaded(config)
    if rank() == 0 and (unused := retired_keys(path, RETIRED)):
        print(f"note: {path} sets {', '.join(unused)}, which changes nothing here", flush=True)
    return config


def _with_parent(overrides: Sequence[str]) -> list[str]:
    """Read `from=` as the setting `parent`; a fork takes size, length, rate and seed from it where none are given."""
    renamed = [re.sub("^from=", "parent=", override) for override in overrides]
    parents = [override.partition("=")[2] for override in renamed if override.startswith("parent=")]
    if not parents or parents[-1] in ("", "null"):
        return renamed
    names = [field.name for field in fields(VideoSettings)]
    names += ["num_frame_per_block", "independent_first_frame"]
    return inherited(read_parent(parents[-1]), names) + renamed


def _take_share(flags: Mapping[str, str]) -> None:
    """Make this process number `gpu_id` of `num_shards`; which GPU that is, CUDA_VISIBLE_DEVICES says."""
    if not {"gpu_id", "num_shards"} & flags.keys():
        return
    number, count = flags.get("gpu_id", "0"), flags.get("num_shards", "1")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise UserError(f"--gpu_id {number} --num_shards {count}: give shards 0 to num_shards - 1")
    os.environ |= {"RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}


def _require_one_prompt(overrides: Sequence[str]) -> None:
    for override in overrides:
        if re.fullmatch(r"prompt=\s*\[.*\]\s*", override, re.DOTALL):
            raise UserError(
                f"{override} is a list, and the setting takes one prompt; write several into a file, one a line, "
                "and name it with data_path=FILE"
            )


def _require_downloaded(config: RunConfig) -> None:
    """Name at once all files that are still to be fetched."""
    files = [config.generator_ckpt]
    files += [str(path) for path, _ in config.loras()]
    files += [str(path) for path in config.descriptor_files().values()]
    if config.prompt is None and not config.parent:
        files.append(config.data_path)
    require_downloaded(Path(config.model_root) / config.model_name, files, vae=config.vae == "full")
