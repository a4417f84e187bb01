"""Futures of one past: committed once, each the fork that inference.py makes, compared in a report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluation.futures.__main__ as futures
import inference
from pipeline import film
from pipeline.build import load
from pipeline.config import load_config
from pipeline.generation import Generation
from pipeline.latents import open_latents
from pipeline.samples import Sample
from tests.miniature import make_family
from tinyworld.futures import METHODS, latents_of, report
from utils.errors import UserError

AT = 4  # blocks of the past
SIZES = ["num_output_frames=18", "height=32", "width=48"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[str]:
    """Settings that put miniature weights in the place of tinyworld's."""
    made = make_family(tmp_path_factory.mktemp("family"))
    found = [f"{key}={made[key]}" for key in ("model_name", "model_root", "generator_ckpt", "text_cache")]
    context = ["compression_method=avg_pool", "local_attn_size=9", "memory_size=3", "recent_exclude=0"]
    return [
        *found,
        "keep_latents=true",
        "denoising_step_list=[1000,500]",
        *(f"model_kwargs.{word}" for word in context),
    ]


@pytest.fixture(scope="module")
def parent(weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    words = [*weights, *SIZES, "prompt=a red house", "seed=3", "segment_blocks=3", f"output_folder={folder}"]
    call(inference.main, "configs/tinyworld_latentmem.yaml", *words)
    return folder / "00000-0"


def call(main, *words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["main", *map(str, words)])
        main()


def make(parent: Path, folder: Path, weights: list[str], *words: str) -> None:
    own = [f"from={parent}", f"at={AT}b", f"folder={folder}", "workers=1"]
    call(futures.main, "tinyworld", *own, *weights, "segment_blocks=2", *words)


def latents_at(path: Path) -> torch.Tensor:
    return open_latents(path.with_name(f"{path.name}.latents.npy")).clone()


def digests_at(path: Path) -> list[dict]:
    return [block["digests"] for block in json.loads(path.with_name(f"{path.name}.json").read_text())["blocks"]]


def test_futures_of_one_past_are_forks_of_it_and_a_killed_run_goes_on(parent, weights, tmp_path, monkeypatch, capsys):
    words = ["methods=[native,latentmem]", "seeds=[3,7]"]
    given = []
    decoded = []

    class Counted(film.Film):
        def _begin_segment(self):
            decoded.append(self.block - 1)
            super()._begin_segment()

    class Dies(Counted):
        def take(self, block, ready):
            if block.plan.start == 15 and self.config.seed == 7 and "latentmem" in self.config.output_folder:
                raise KeyboardInterrupt
            super().take(block, ready)

    give = Generation.give
    monkeypatch.setattr(Generation, "give", lambda self, latents: (given.append(self.start), give(self, latents))[1])
    monkeypatch.setattr("evaluation.futures.past.Film", Counted)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.sinks.Film", Dies)
        with pytest.raises(KeyboardInterrupt):
            make(parent, tmp_path, weights, *words)
    assert given == [0, 3, 6, 9] * 2  # once a method
    assert sum(block < AT for block in decoded) == 2 * AT
    given.clear()
    decoded.clear()
    make(parent, tmp_path, weights, *words)
    assert given == [0, 3, 6, 9, 12] and decoded == []
    out = capsys.readouterr().out
    assert "4 futures of 2 pasts, 1 to be made" in out and "native - latentmem" not in out
    assert not [path for path in tmp_path.rglob(".*") if not path.name.startswith(".claim")]
    same, other = tmp_path / "latentmem" / "00000-0", tmp_path / "latentmem" / "00000-1"
    assert torch.equal(latents_at(same), latents_at(parent)) and digests_at(same) == digests_at(parent)
    assert torch.equal(latents_at(other)[:12], latents_at(parent)[:12])
    assert not torch.isclose(latents_at(other)[12:], latents_at(parent)[12:]).all(dim=(1, 2, 3)).any()
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["methods"]) == ["native", "latentmem"] and len(report["compared"]) == 2
    fork = [f"from={parent}", f"at={AT}b", "seed=7", f"output_folder={tmp_path / 'fork'}"]
    call(inference.main, "configs/tinyworld_native.yaml", *weights, *fork)
    (made,) = (tmp_path / "fork").glob("*.mp4")
    assert torch.equal(latents_at(made.with_suffix("")), latents_at(tmp_path / "native" / "00000-1"))
    assert digests_at(made.with_suffix("")) == digests_at(tmp_path / "native" / "00000-1")


def test_futures_under_other_prompts_are_in_folders_by_prompt(parent, weights, tmp_path):
    make(parent.parent, tmp_path, weights, "methods=[latentmem]", "prompts=['', a blue tree]", "switch=flush")
    own, tree = tmp_path / "prompt0", tmp_path / "prompt1_a_blue_tree"
    assert digests_at(own / "00000-0") == digests_at(parent)
    assert digests_at(tree / "00000-0")[:AT] == digests_at(parent)[:AT]
    scenes = json.loads((tree / "00000-0.json").read_text())["scenes"]
    assert scenes[1] == {"start": 12, "prompt": "a blue tree", "how": "flush"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tinyworld"], "futures need a past"),
        (["tinyworl", "from=PARENT", "at=5b"], "did you mean 'tinyworld'"),
        (["tinyworld", "from=PARENT"], "futures need a past"),
        (["tinyworld", "from=PARENT", "at=0s"], "leaves no past"),
        (["tinyworld", "from=PARENT", "at=90s"], "not before the end"),
        (["tinyworld", "from=PARENT", "at=5b", "methods=[native,laten]"], "is no method"),
        (["tinyworld", "from=PARENT", "at=5b", "methods=[native]"], "are one future"),
        (["tinyworld", "from=PARENT", "at=5b", "seeds=[1,1]"], "one of them twice"),
        (["tinyworld", "from=PARENT", "at=5b", "seed=1"], r"give seeds=\[...\]"),
        (["tinyworld", "from=PARENT", "at=5b", "seeds=[one]"], "seeds"),
        (["tinyworld", "from=PARENT", "at=5b", "prompts=['', 'a[9s] | b']"], "would begin at"),
        (["tinyworld", "from=none", "at=5b"], "does not exist"),
        (["tinyworld", "from=EMPTY", "at=5b"], "without finished videos"),
        (["tinyworld", "from=PARENT", "at=5b", "model_name=tinyworld", "WORLD"], "other weights"),
    ],
)
def test_bad_futures_are_one_line_before_the_work(parent, weights, tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    world = ["generator_ckpt=checkpoints/tinyworld.safetensors", "model_root=wan_models"]
    filled = []
    for word in words:
        if word == "WORLD":
            filled += world
        else:
            filled.append(word.replace("PARENT", str(parent)).replace("EMPTY", str(tmp_path / "empty")))
    with pytest.raises(UserError, match=said) as error:
        call(futures.main, filled[0], *weights, *filled[1:], f"folder={tmp_path / 'new'}")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_the_future_of_a_past_is_the_first_methods_and_then_the_seconds(weights):
    pipelines = []
    for method in METHODS:
        typed = [*weights, *SIZES, "keep_latents=false"]
        pipelines.append(load(load_config(f"configs/tinyworld_{method}.yaml", typed)))
    first, second, future = (torch.cat(row, dim=1) for row in latents_of(pipelines, [Sample("a red house")], 12))
    assert torch.equal(future[:, :12], first[:, :12])
    generation = pipelines[1].start(Sample("a red house"))
    for start in range(0, 12, 3):
        generation.give(first[:, start : start + 3])
    assert torch.equal(generation.step().latents, future[:, 12:15])
    assert not torch.isclose(first, second).all() and not torch.isclose(first, future).all()


def test_futures_that_scatter_half_as_much_need_a_quarter_of_the_videos(tmp_path):
    rng = np.random.default_rng(0)
    found = {}
    for prompt in range(400):
        native = rng.normal()
        values = {"native": native, "latentmem": native + rng.normal(1, 2), "future": native + rng.normal(1, 1)}
        found[prompt, 0] = {f"{row}/drift": value for row, value in values.items()}
    found[400, 0] = {"native/drift": 0.0, "latentmem/drift": None, "future/drift": 1.0}
    report(found, tmp_path)
    row = next(line for line in (tmp_path / "futures.md").read_text().splitlines() if line.startswith("| drift"))
    cells = [cell.strip() for cell in row.split("|")]
    share, low, high = map(int, re.findall(r"\d+", cells[4]))
    assert low < share < high and 20 < share < 31
    whole, future = map(int, re.findall(r"\d+", cells[5]))
    assert 25 < whole < 45 and 6 < future < 12
