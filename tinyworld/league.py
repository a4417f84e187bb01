"""The methods of `pipeline.backbones` as rows of tinyworld's benchmark."""

from typing import Any

import yaml

from pipeline.backbones import METHODS, config_path

BASELINES = ("native", "latentmem")
SHORT = ("native", "latentmem", "commit_forcing", "memrope", "tethercache", "deep_forcing", "latentmem_draft")
WINDOW = 18  # latent frames that tinyworld's backbone was trained with
IN_ONE_WINDOW = {"tethercache": {"merged_size": 11}}  # sizes that do not fit that window as published
LEAGUES = {  # name -> which methods, and whether all get one window
    "none": ((), False),
    "all": (tuple(METHODS), False),
    "short": (SHORT, False),
    "one_window": (tuple(METHODS), True),
}


def league_rows(league: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Method -> the config that it starts from, and what it changes there."""
    methods, in_one_window = LEAGUES[league]
    rows = {}
    for name in methods:
        kwargs = {}
        for change in METHODS[name].settings:
            key, value = change.removeprefix("model_kwargs.").split("=")
            kwargs[key] = yaml.safe_load(value)
        if in_one_window:
            kwargs |= {"local_attn_size": WINDOW, **IN_ONE_WINDOW.get(name, {})}
            if "plain_frames" in kwargs:
                kwargs["plain_frames"] = WINDOW
        rows[name] = (str(config_path("tinyworld", name)), {"model_kwargs": kwargs})
    return rows
