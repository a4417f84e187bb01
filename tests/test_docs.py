"""What the documents say of the code is so: settings, names of files, Python in the README."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from docs import settings_page
from pipeline import backbones, descriptors
from pipeline.backbones import METHODS

ROOT = Path(__file__).parent.parent
FOLDERS = "pipeline|wan|ae|tinyworld|evaluation|benchmarks|serve|utils|tests|configs"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_of_settings_is_what_the_definitions_make():
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page(), "run python -m docs.settings_page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_links_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./]*)`", text):
        assert (ROOT / name).exists() or "BACKBONE" in name, name
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / "tests" / name).exists(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for module in re.findall(r"python -m ((?:pipeline|ae|tinyworld|evaluation|benchmarks|tests|docs)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_tree_in_the_readme_lists_every_file_of_the_pipeline():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.partition("pipeline/\n")[2].partition("```")[0]
    listed = set(re.findall(r"^ +(\w+\.py)\b", tree, re.MULTILINE))
    there = {path.name for path in (ROOT / "pipeline").rglob("*.py") if path.name != "__init__.py"}
    assert listed == there


def test_every_method_is_described():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"\n| `{name}` |" in text, name


def code_of(page: str, start: str) -> str:
    """The block of Python on a page that begins with `start`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.partition(f"```python\n{start}")[2].partition("```")[0]


def test_the_readme_shows_the_policy_of_the_benchmark():
    """Which `test_the_examples_of_the_docs_work` runs."""
    code = code_of("README.md", "@dataclass")
    assert "def plan" in code
    assert code == code_of("docs/benchmark.md", "@dataclass")


def test_the_readme_shows_the_rule_of_the_benchmark():
    """Which the same test runs."""
    code = code_of("README.md", "def spread")
    assert "return" in code
    assert code_of("docs/benchmark.md", "def spread").startswith(code)


def test_the_descriptor_of_the_docs_describes_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(descriptors, "DESCRIPTORS", dict(descriptors.DESCRIPTORS))
    names = vars(descriptors).copy()
    exec("@dataclass" + code_of("docs/retrieval_encoder.md", "@dataclass"), names)
    save_file({"matrix": torch.eye(4)[:, :2].contiguous()}, tmp_path / "p.safetensors")
    made = descriptors.DESCRIPTORS["projection"](projection_ckpt=str(tmp_path / "p.safetensors"))
    assert made.files() == {"projection_ckpt": tmp_path / "p.safetensors"}
    latents = torch.arange(8.0).reshape(1, 2, 4, 1, 1)  # [B, F, C, H, W]
    assert made.load((4, 1, 1), "cpu")(latents).tolist() == [[[0, 1], [4, 5]]]


def test_the_backbone_of_the_docs_is_a_row(monkeypatch):
    row = code_of("docs/weights.md", '"mine"')
    names = vars(backbones).copy()
    exec('added = {"mine"' + row + "}", names)
    assert str(names["added"]["mine"].weights[0].path) == "checkpoints/mine.pt"
    monkeypatch.setitem(backbones.BACKBONES, "mine", names["added"]["mine"])
    assert backbones.config_path("mine", "latentmem") == Path("configs/mine_latentmem.yaml")
