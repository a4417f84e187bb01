"""Settings: where values come from, how wrong ones are named, and what a person reads of them."""

import runpy
import sys
from dataclasses import FrozenInstanceError, dataclass, field, fields

import pytest

from pipeline.bank.codec import STORAGES
from pipeline.bank.settings import BankSettings
from pipeline.config import RunConfig, load_config
from pipeline.context import COMMIT_RULES, ContextPolicy
from utils.errors import UserError
from utils.settings import load_settings


@dataclass(frozen=True)
class Inner:
    size: int = 1
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    steps: list[int] = field(default_factory=lambda: [1])
    rate: float = 0.1
    text: str | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("rate: 3e-4\ninner: {size: 6}\nold: 1\n")
    return path


def test_settings_are_defaults_then_file_then_command_line(file):
    typed = ["steps=[3,4]", "text=a: b ${x} [y], 1", "flag=true", "inner.size=2"]
    settings = load_settings(Outer, file, typed, retired=["old"])
    assert settings == Outer([3, 4], 3e-4, "a: b ${x} [y], 1", True, Inner(2))
    with pytest.raises(FrozenInstanceError):
        settings.rate = 1.0


@pytest.mark.parametrize(
    "typed, words",
    [
        ("stesp=[1]", "unknown setting 'stesp' in the command line; did you mean 'steps'?"),
        ("inner.siez=3", "did you mean 'inner.size'?"),
        ("size=3", "did you mean 'inner.size'?"),
        ("rate=fast", "setting 'rate' in the command line"),
        ("steps=3", "setting 'steps'"),
        ("inner=3", "in the command line"),
        ("rate", "not of the form key=value"),
        ("inner.=3", "unknown setting 'inner.' in the command line; did you mean 'inner'?"),
        ("steps=[1,,2]", "override 'steps=[1,,2]' is not a list"),
    ],
)
def test_a_wrong_setting_is_named(file, typed, words):
    with pytest.raises(UserError) as error:
        load_settings(Outer, file, [typed], retired=["old"])
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "- a list", "a: [", "\xff"])
def test_a_file_that_is_no_settings_is_named(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"x\.yaml"):
        load_settings(Outer, path)


@pytest.mark.parametrize("module", ["tinyworld.oracle_memory", "benchmarks.long"])
def test_help_is_the_docstring(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "frames=9000", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (0, "")
    assert f"python -m {module}" in said.out


def test_the_api_takes_a_tree_of_overrides():
    config = load_config("configs/tinyworld_latentmem.yaml", {"seed": 3, "model_kwargs": {"memory_size": 4}})
    assert isinstance(config, RunConfig)
    assert (config.seed, config.model_kwargs.memory_size, config.model_kwargs.retrieve_after) == (3, 4, "local")


@pytest.mark.parametrize(
    "schema, name, table",
    [(BankSettings, "storage", STORAGES), (ContextPolicy, "commit_rule", COMMIT_RULES)],
    ids=["storage", "commit_rule"],
)
def test_choices_that_are_written_out_are_those_of_their_table(schema, name, table):
    """Where the table lies behind torch, or needs the class that has the setting."""
    (setting,) = [field for field in fields(schema) if field.name == name]
    assert list(setting.metadata["choices"]) == list(table)
