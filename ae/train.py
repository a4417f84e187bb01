"""Train the retrieval encoder, on one process or, through torchrun, on several GPUs.

    python -m ae.train ae/configs/ae_delta.yaml data_dir=datasets
    python -m ae.train --config ae/configs/ae_delta.yaml --data_dir datasets     # the same

The first argument is a YAML file; settings as key=value, --key value or --key=value replace the file's:
"""

import sys
from collections.abc import Iterable
from dataclasses import fields

import yaml

from ae.settings import RETIRED, TrainSettings, load_train_settings
from utils.errors import UserError, run
from utils.paths import read_path
from utils.settings import print_help, retired_keys

EXAMPLE = "python -m ae.train ae/configs/ae_delta.yaml data_dir=FOLDER"
NAMES = {field.name for field in fields(TrainSettings)}


def main() -> None:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print_help(TrainSettings)
        return
    config, overrides = parse(arguments)
    objective = objective_of(config)
    if objective:
        from ae.usefulness_train import train  # late, as below

        train(config, overrides, objective)
        return
    settings = load_train_settings(config, overrides)

    from ae.trainer import Trainer  # late: torch takes seconds to import, --help and a wrong key should not

    trainer = Trainer.start(settings)
    for key in retired_keys(config, RETIRED):
        trainer.say(f"note: {config} sets {key}, which changes nothing here")
    trainer.run()


def objective_of(config: str) -> str:
    """What a config of `ae.usefulness_train` trains; a file that cannot be read is refused later, by its reader."""
    try:
        return str(yaml.safe_load(read_path(config).read_text()).get("objective", ""))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return ""


def parse(arguments: Iterable[str]) -> tuple[str, list[str]]:
    """The config's path, and the settings of a command line as `key=value`."""
    config = ""
    overrides = []
    for key, values in given(arguments):
        value = values[0] if len(values) == 1 else f"[{','.join(values)}]"
        if key != "config":
            overrides.append(f"{key}={value}")
        elif config:
            raise UserError(f"'{config}' and '{value}' are given as the config; give one: {EXAMPLE}")
        else:
            config = value
    if not config:
        raise UserError(f"no config is given; for example: {EXAMPLE}")
    return config, overrides


def given(arguments: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The settings of a command line in order, each with its values; `--key` alone has the value true.

    A word without dashes or `=` is a value of the `--key` before it, or else the config.
    """
    found: list[tuple[str, list[str]]] = []
    waiting: list[str] | None = None  # the values of the last `--key`, which takes the words that follow it
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and not equals:
            waiting = []
            found.append((key, waiting))
        elif argument.startswith("--"):
            waiting = None
            found.append((key, [value]))
        elif waiting is not None and (not equals or not (waiting or key in NAMES)):
            waiting.append(argument)
        elif equals:
            waiting = None
            found.append((key, [value]))
        else:
            found.append(("config", [argument]))
    return [(key, values or ["true"]) for key, values in found]


if __name__ == "__main__":
    run(main)
