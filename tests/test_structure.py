"""The code keeps its shape: one way for imports, no effects on import, settings typed and forgiving."""

import ast
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path

import pytest

from pipeline.config import RunConfig, load_config
from utils.errors import UserError
from utils.files import atomic
from utils.settings import load_settings

ROOT = Path(__file__).parent.parent
BELOW = {  # package -> what it may import of ours
    "utils": {"utils"},
    "wan": {"wan", "utils"},
    "ae": {"ae", "utils"},
    "pipeline": {"pipeline", "wan", "ae", "utils"},
    "evaluation": {"evaluation", "pipeline", "wan", "ae", "utils"},
    "serve": {"serve", "evaluation", "pipeline", "wan", "ae", "utils"},
}
OURS = {*BELOW, "tinyworld", "tests", "inference", "generate_latent", "benchmarks"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", BELOW)
def test_imports_point_one_way(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        assert imports(path) & OURS <= BELOW[package], path


@pytest.mark.parametrize("name", ["context", "policies", "merging", "selection"])
def test_policy_is_integers(name):
    allowed = {"collections", "dataclasses", "pipeline", "random", "typing", "utils"}
    assert imports(ROOT / "pipeline" / f"{name}.py") <= allowed


def test_no_module_imports_itself_in_a_circle():
    """What is imported when a module is, followed to the end; imports within functions come later and do not count."""
    found = {}
    for package in (*BELOW, "tinyworld"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            nodes = ast.parse(path.read_text()).body
            found[name] = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    left = dict(found)
    while left:
        free = [name for name, wanted in left.items() if not wanted & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_modules_import_without_a_gpu_and_without_effects(tmp_path):
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in BELOW
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    script = (
        "import sys, importlib, os, torch\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert not {'flash_attn', 'wandb', 'torchvision', 'vbench'} & set(sys.modules)\n"
        "assert not torch.cuda.is_initialized() and not os.listdir()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


def test_a_wrong_argument_does_not_wait_for_torch():
    script = (
        "import sys, inference\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


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
def test_help_is_the_docstring(module):
    command = [sys.executable, "-m", module, "frames=9000", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert f"python -m {module}" in run.stdout


def test_the_api_takes_a_tree_of_overrides():
    config = load_config("configs/tinyworld_latentmem.yaml", {"seed": 3, "model_kwargs": {"memory_size": 4}})
    assert isinstance(config, RunConfig)
    assert (config.seed, config.model_kwargs.memory_size, config.model_kwargs.recent_exclude) == (3, 4, 5)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
