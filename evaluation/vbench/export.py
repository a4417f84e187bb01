"""Videos laid out as VBench-Long wants them, and the commands that evaluate them."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.compare.pairing import Key, Method
from utils.errors import UserError
from utils.files import write_json

DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)


def export_method(method: Method, out: Path) -> Path:
    """Link a method's videos as `00012-0.mp4` in a folder of their own.

    VBench-Long cuts names at the first underscore, expects them to end in a number, and takes up the clips that
    it finds from another time: names get no underscore, and a folder made for other videos is refused.
    """
    folder = out / method.name.replace("/", "-")
    try:
        _lay_out(method, folder)
    except OSError as error:
        raise UserError(
            f"cannot export to {folder}: {error.strerror}; free some space, or choose another --out or name"
        ) from error
    return folder


def _lay_out(method: Method, folder: Path) -> None:
    names = export_names(list(method.videos))
    content = {name: _identity(method.videos[key]) for key, name in names.items()}
    record = folder / "names.json"
    if folder.exists() and read_json(record) != content:
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


def export_names(keys: Sequence[Key]) -> dict[Key, str]:
    """Names as VBench-Long wants them. Prompts that have a number keep it, unless two would share one."""
    prompts = []
    for prompt, _ in sorted(keys):
        if prompt not in prompts:
            prompts.append(prompt)
    numbers = {}
    for place, prompt in enumerate(prompts):
        numbers[prompt] = int(prompt) if prompt.isdecimal() else place
    if len(set(numbers.values())) < len(prompts):
        numbers = {prompt: place for place, prompt in enumerate(prompts)}
    names = {}
    for prompt, sample in sorted(keys):
        names[prompt, sample] = f"{numbers[prompt]:05d}-{sample}.mp4"
    return names


def command(python: str, root: Path, folder: Path, dimension: str) -> list[str]:
    """The command that evaluates one dimension of one exported folder, with every option that matters.

    `--dev_flag` is what gives the long-range half its weight (from `slow_fast_params.yaml`) and its feature
    extractors; without it VBench-Long sets that weight to 0 whatever else is given. The clip lengths it looks for
    beside its own package, where pip leaves them out; a full path is taken as it is.
    """
    root = root.resolve()
    long = root / "vbench2_beta_long"
    options = {
        "--videos_path": folder.resolve(),
        "--output_path": results_folder(folder).resolve() / dimension,
        "--dimension": dimension,
        "--mode": "long_custom_input",
        "--full_json_dir": root / "vbench" / "VBench_full_info.json",
        "--clip_length_config": long / "configs" / "clip_length_mix.yaml",
        "--slow_fast_eval_config": long / "configs" / "slow_fast_params.yaml",
        "--subject_mapping_file_path": long / "configs" / "subject_mapping_table.yaml",
        "--background_mapping_file_path": long / "configs" / "background_mapping_table.yaml",
        "--sb_clip2clip_feat_extractor": "dinov2",
        "--bg_clip2clip_feat_extractor": "dreamsim",
        "--imaging_quality_preprocessing_mode": "longer",
    }
    words = [python, str(long / "eval_long.py")]
    for option, value in options.items():
        words += [option, str(value)]
    return [*words, "--dev_flag"]


def results_folder(folder: Path) -> Path:
    """Where the results of an exported folder go: VBench does not look into folders of this name."""
    return folder / "vbench"


def exported(out: Path) -> list[Path]:
    """Exported methods in a folder, or that folder itself."""
    if (out / "names.json").exists():
        return [out]
    folders = sorted(record.parent for record in out.glob("*/names.json"))
    if not folders:
        raise UserError(f"{out} holds no exported videos; python -m evaluation.vbench export VIDEOS --out {out}")
    return folders


def is_export(path: Path) -> bool:
    """Whether a folder was made by `export`."""
    return path.is_dir() and ((path / "names.json").exists() or any(path.glob("*/names.json")))


def read_json(path: Path) -> Any:
    """The content of a JSON file, None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _identity(path: Path) -> dict:
    status = path.stat()
    return {"file": str(path.resolve()), "bytes": status.st_size, "changed": status.st_mtime}
