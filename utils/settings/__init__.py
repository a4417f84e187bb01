"""Typed, frozen settings: dataclass defaults < YAML file < dotted command-line overrides.

A settings class says of each field what it means and what it may be:

    @dataclass(frozen=True, kw_only=True)
    class Video(Settings):
        fps: int = setting(16, "frames a second of the mp4", at_least=1)

The same words make `--help`, docs/settings.md and the message that refuses a wrong value.
"""

from utils.settings.fields import Settings, combined, places, require_choice, setting, to_dict
from utils.settings.help import Described, described, print_help
from utils.settings.reading import load_settings, retired_keys

__all__ = [
    "Described",
    "Settings",
    "combined",
    "described",
    "load_settings",
    "places",
    "print_help",
    "require_choice",
    "retired_keys",
    "setting",
    "to_dict",
]
