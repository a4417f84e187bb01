"""What futures are made: settings, and the run's own settings beside them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from pipeline.backbones import BACKBONES, config_path
from utils.errors import UserError, did_you_mean
from utils.settings import Settings, load_settings, setting

OTHERS = {  # settings of a run that are said otherwise here
    "prompt": "prompts=[...]",
    "seed": "seeds=[...]",
    "output_folder": "folder=",
    "redo": "at=",
    "keep_after": "at=",
    "start": "from=",
    "data_path": "from=",
    "batch_size": "nothing: each future is made alone",
    "num_samples": "seeds=[...]",
    "keep_state": "it to the parent's own run",
}


@dataclass(frozen=True, kw_only=True)
class FuturesSettings(Settings):
    """Futures of one past"""

    parent: str = setting("", "from=: a finished video, or a folder of them", reads=True)
    at: str = setting("", "time from which the futures are made, such as 12s, 48f or 16b")
    methods: list[str] = setting(["native", "latentmem"], "methods to go on with, as of inference.sh")
    prompts: list[str] = setting([], "texts to go on with, the parent's own by default; an empty one is that, too")
    seeds: list[int] = setting([], "seeds of the noise to come, the parent's own by default", at_most=2**63 - 1)
    workers: int = setting(0, "videos to measure at a time; 0 for one a CPU", at_least=0, place=True)
    folder: str = setting("runs/futures", "where the futures and their report go", place=True, writes=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("parent", "at"):
            if not getattr(self, name):
                raise UserError("futures need a past: from=videos/tinyworld/latentmem/00000-0 at=12s")
        for name in ("methods", "prompts", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"{name} {values} names one of them twice")
        if not self.methods:
            raise UserError("methods is empty; name at least one")
        if max(len(self.methods), len(self.prompts), len(self.seeds)) < 2:
            raise UserError("one method, one prompt and one seed are one future; name two of something to compare")


def read_command_line(words: Sequence[str]) -> tuple[str, FuturesSettings, list[str]]:
    """`BACKBONE [key=value ...]` to the backbone, the settings of the futures and those of every run.

    Raises:
        UserError: no such backbone or method, or a setting that has no meaning here.
    """
    words = [re.sub("^from=", "parent=", word) for word in words]
    if {"-h", "--help"} & set(words):
        load_settings(FuturesSettings, None, ["--help"])
    backbone, *typed = words or [""]
    if backbone not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise UserError(f"'{backbone}' is no backbone{did_you_mean(backbone, BACKBONES)}; first name one of {known}")
    names = [field.name for field in fields(FuturesSettings)]
    own, of_runs = [], []
    for word in typed:
        key = word.partition("=")[0]
        if key in OTHERS:
            raise UserError(f"{key}= is of a single run; for futures, give {OTHERS[key]}")
        (own if key in names else of_runs).append(word)
    settings = load_settings(FuturesSettings, None, own)
    for method in settings.methods:
        config_path(backbone, method)
    return backbone, settings, of_runs
