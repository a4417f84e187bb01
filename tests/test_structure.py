"""The code keeps its shape: one way for imports, no effects on import, files that appear whole."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.files import atomic

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


@pytest.mark.parametrize("name", ["context", "heads", "policies", "merging", "selection"])
def test_policy_is_integers(name):
    allowed = {"collections", "dataclasses", "json", "pathlib", "pipeline", "random", "typing", "utils"}
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
    """Also beside a corpus folder named `datasets`, which is a package that other libraries look for, too."""
    (tmp_path / "datasets").mkdir()
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in BELOW
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    script = (
        "import sys, importlib, os, torch\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert not {'flash_attn', 'wandb', 'torchvision', 'vbench'} & set(sys.modules)\n"
        "assert not torch.cuda.is_initialized() and os.listdir() == ['datasets']\n"
        "from accelerate import Accelerator; Accelerator()\n"
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


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
