"""What benchmarks are given, looked at before they work."""

from pathlib import Path

from pipeline.config import RunConfig
from pipeline.prompts import load_prompts
from utils.errors import UserError
from utils.files import require_writable


def first_prompt(config: RunConfig) -> str:
    """The prompt of a run, or the first one of its file."""
    if config.prompt is None and not config.data_path:
        raise UserError("the config names neither prompt nor data_path; set one of them in it")
    return load_prompts(config.prompt, config.data_path, 1)[0].text


def require_output(path: str) -> None:
    """Refuse a name that no file can be written to."""
    if Path(path).is_dir():
        raise UserError(f"output {path} is a folder; name a file in it")
    require_writable(Path(path).parent)
