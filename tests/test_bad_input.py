"""Bad input of every kind to every command: one line, status 2, nothing written and no work done before.

What is wrong to give a setting follows from the settings themselves, so a new setting is tried as well. Files are
broken in the ways that disks, networks and editors break them.
"""

import dataclasses
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import benchmarks.ae_loader
import benchmarks.long
import benchmarks.run
import benchmarks.storage
import benchmarks.weights
import download
import evaluation.__main__
import evaluation.retrieval.__main__
import evaluation.vbench.__main__
import generate_latent
import inference
import tests.make_random_weights
import tinyworld.benchmark
import tinyworld.changed
import tinyworld.oracle_memory
import tinyworld.report
import tinyworld.train
import tinyworld.truth
from ae import train as ae_train
from ae.settings import TrainSettings as EncoderSettings
from pipeline.config import CorpusConfig, RunConfig
from tests.miniature import HEIGHT, WIDTH, latentmem, make_family, write_config
from tinyworld.training.settings import TrainSettings as WorldTraining
from tinyworld.world.film import held_out
from utils.errors import run

# command -> (its entry point, its settings if they are a tree, its arguments; FAMILY is a folder of small weights)
COMMANDS: dict[str, tuple[Callable[[], None], type | None, list[str]]] = {
    "inference": (inference.main, RunConfig, ["FAMILY/run.yaml", "output_folder=OUT"]),
    "generate_latent": (generate_latent.main, CorpusConfig, ["FAMILY/run.yaml", "output_folder=OUT"]),
    "ae.train": (ae_train.main, EncoderSettings, ["FAMILY/ae.yaml", "log_dir=OUT"]),
    "tinyworld.train": (tinyworld.train.main, WorldTraining, ["work=OUT", "export=OUT"]),
    "tinyworld.benchmark": (tinyworld.benchmark.main, tinyworld.benchmark.BenchmarkSettings, ["folder=OUT"]),
    "tinyworld.report": (tinyworld.report.main, tinyworld.report.ReportSettings, ["folder=OUT"]),
    "tinyworld.oracle_memory": (tinyworld.oracle_memory.main, tinyworld.oracle_memory.OracleSettings, []),
    "tinyworld.changed": (tinyworld.changed.main, tinyworld.changed.ChangedSettings, []),
    "benchmarks.run": (benchmarks.run.main, benchmarks.run.BenchmarkConfig, ["output=OUT/run.json"]),
    "benchmarks.long": (benchmarks.long.main, benchmarks.long.LongConfig, ["output=OUT"]),
    "benchmarks.storage": (benchmarks.storage.main, None, []),
    "benchmarks.ae_loader": (benchmarks.ae_loader.main, None, ["--folder=OUT"]),
    "benchmarks.weights": (benchmarks.weights.main, None, []),
    "tinyworld.truth": (tinyworld.truth.main, None, ["OUT"]),
    "tests.make_random_weights": (tests.make_random_weights.main, None, []),
    "download": (download.main, None, []),
    "evaluation": (evaluation.__main__.main, None, ["--out=OUT"]),
    "evaluation.retrieval": (evaluation.retrieval.__main__.main, None, ["--data=FAMILY/latents", "--out=OUT"]),
    "evaluation.vbench": (evaluation.vbench.__main__.main, None, []),
}


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """Weights, prompts, latents and configs, all whole."""
    folder = tmp_path_factory.mktemp("family")
    settings = make_family(folder)
    settings["model_kwargs"] = latentmem(folder, "ae")
    settings["num_output_frames"] = 3
    write_config(folder / "run.yaml", settings)
    (folder / "latents").mkdir()
    for number in range(2):
        torch.save(torch.zeros(12, 16, HEIGHT // 8, WIDTH // 8), folder / "latents" / f"latent_{number:06d}.pt")
    sizes = {"spatial_h": HEIGHT // 8, "spatial_w": WIDTH // 8, "hidden_dims": [16], "latent_dim": 8}
    write_config(folder / "ae.yaml", {"data_dir": str(folder / "latents"), "num_workers": 0, **sizes})
    layer = "blocks.0.self_attn.q"
    halves = {f"{layer}.lora_A.weight": torch.zeros(4, 48), f"{layer}.lora_B.weight": torch.zeros(48, 4)}
    save_file(halves, folder / "lora.safetensors")
    (folder / "videos").mkdir()
    (folder / "videos" / "00000-0.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(autouse=True)
def no_work(monkeypatch) -> None:
    """Whoever computes, paints or starts a process before all is looked at fails the test."""

    def work(*arguments, **keywords):
        raise AssertionError("work was done before the input was looked at")

    monkeypatch.setattr(torch.nn.Module, "__call__", work)
    monkeypatch.setattr(torch, "matmul", work)
    monkeypatch.setattr(tinyworld.train.gallery, "paint_galleries", work)
    for module in (
        tinyworld.benchmark, tinyworld.report, tinyworld.oracle_memory, tinyworld.changed, tinyworld.train,
    ):  # fmt: skip
        assert module.held_out is held_out
        monkeypatch.setattr(module, "held_out", work)
    monkeypatch.setattr(inference, "require_encoder", lambda: None)  # asks ffmpeg, which is no work
    monkeypatch.setattr(subprocess, "Popen", work)


def refused(command: str, arguments: list[str], family: Path, folder: Path, monkeypatch, capsys) -> str:
    """The one line that `command` says of bad arguments; nothing else may have come of them."""
    main, _, given = COMMANDS[command]
    out = folder / "out"
    words = []
    for word in [*given, *arguments]:
        words.append(word.replace("FAMILY", str(family)).replace("OUT", str(out)))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [command, *words])
    before = contents(family, folder)
    with pytest.raises(SystemExit) as ended:
        run(main)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert len(said) < 700, said
    assert "Error:" not in said.replace("error: ", "", 1), said
    assert contents(family, folder) == before
    return said


def contents(*folders: Path) -> list[tuple]:
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            found.append((path, None if path.is_dir() else path.stat().st_mtime_ns))
    return found


def settings_of(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, object]]:
    """(dotted name, field, type) of every setting and group."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        parts = [part for part in (kind, *typing.get_args(kind)) if part is not type(None)]
        group = next((part for part in parts if dataclasses.is_dataclass(part)), None)
        if group and typing.get_origin(kind) not in (list, dict):
            yield prefix + field.name, field, group
            yield from settings_of(group, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, kind


def wrong_values(field: dataclasses.Field, kind: object) -> list[str]:
    """What must be refused for a setting, as typed."""
    bounds = field.metadata.get("bounds", {})
    choices = field.metadata.get("choices")
    inner = [part for part in typing.get_args(kind) if part is not type(None)]
    if dataclasses.is_dataclass(kind):
        return ["3", "word", "[1,2]"]
    if typing.get_origin(kind) in (list, tuple):
        of_one = wrong_values(field, inner[0]) if inner[0] in (int, float) else []
        of_words = [] if dataclasses.is_dataclass(inner[0]) else ["[{a: 1}]"]
        return ["word", "{a: 1}", "[[1],[2]]", *of_words, "???", *(f"[{value}]" for value in of_one)]
    if typing.get_origin(kind) is dict:
        return ["word", "[1]"]
    scalar = kind if kind in (int, float, bool, str) else (inner or [None])[0]
    if scalar is bool:
        return ["perhaps", "2", "[true]", "null", "???"]
    if scalar is str:
        empty = [""] if field.metadata.get("writes") else []
        return ["[a,b]", "???", *empty, *(["no such word"] if choices else [])]
    if scalar not in (int, float):
        return []
    wrong = ["word", "", "nan", "inf", "-inf", "[1,2]", "1e400", f"1{'0' * 31}", "???", "{a: 1}"]
    if scalar is int:
        wrong += ["1.5", "1e12"]
    for name in ("at_least", "above"):
        if name in bounds:
            wrong.append(str(bounds[name] - 1))
    for name in ("at_most", "below"):
        if name in bounds:
            wrong.append(str(bounds[name] + 1))
    if "above" in bounds:
        wrong.append(str(bounds["above"]))
    if "below" in bounds:
        wrong.append(str(bounds["below"]))
    return wrong


TRIED = 2  # of the wrong values of a setting; which ones goes round, so that every kind meets every command


def bad_settings() -> Iterator[tuple[str, str]]:
    """(command, setting as typed): every setting of every command."""
    turn = 0
    for command, (_, schema, _) in COMMANDS.items():
        if schema is None:
            continue
        seen = settings_of(RunConfig) if schema is CorpusConfig else ()
        tried = {name for name, field, _ in seen}
        for name, field, kind in settings_of(schema):
            if name in tried and name != "model_kwargs":  # the same settings as those of inference
                continue
            wrong = wrong_values(field, kind)
            for _ in wrong[:TRIED]:
                turn += 1
                yield command, f"{name}={wrong[turn % len(wrong)]}"
        for text in ("no_such=1", "=1", "word", ".a=1", "a..b=1", "--", "--no-such"):
            yield command, text


CASES = list(bad_settings())


@pytest.mark.parametrize(("command", "text"), CASES, ids=str)
def test_a_wrong_setting_is_one_line(command, text, family, tmp_path, monkeypatch, capsys):
    said = refused(command, [text], family, tmp_path, monkeypatch, capsys)
    name = text.partition("=")[0].strip("-.")
    assert name.replace("-", "_") in said.replace("-", "_"), said


ARGUMENTS = {
    "inference": [
        "model_kwargs=null", "bank=null", "denoising_step_list=[]", "denoising_step_list=null",
        "height=16384 width=16384 batch_size=4096", "num_output_frames=999999999", "model_kwargs.latent_dim=3",
        "model_name=", "generator_ckpt=", "data_path=", "output_folder=FAMILY/run.yaml/x", "prompt=", "prompt=[a,b]",
        "lora_ckpt=3", "lora_ckpt=[{path: FAMILY/lora.safetensors, weight: nan}]", "adapter.rank=", "FAMILY/run.yaml",
        "device=cuda", "attention_backend=none", "weights=fp8x", "vae=tiny", "data_path=FAMILY", "seed.x=1",
        "output_folder=", "prompt=???",
    ],
    "generate_latent": ["sample_ratio=0", "max_video_saves=-1", "sample_ratio=nan"],
    "ae.train": [
        "hidden_dims=[]", "latent_dim=16384 hidden_dims=[16384,16384]", "val_split=1", "data_dir=OUT/none",
        "tracker=none2", "FAMILY/run.yaml", "in_channels=3", "seq_len=99", "resume=OUT/none.pt", "resume=FAMILY",
        "resume=FAMILY/run.yaml", "resume=FAMILY/checkpoints/miniature_ae.pt", "tag=../x", "log_dir=FAMILY/run.yaml",
    ],
    "tinyworld.train": [
        "device=foo", "generates=OUT/none.yaml", "backbone.kinds=[1,1,1]", "world.shown=[64]", "work=",
        "export=", "work=FAMILY/run.yaml", "encoder.corpus=[sead=1]", "encoder.training=[lr=nan]",
        "encoder.corpus=[num_output_frames=10]", "encoder.training=[word]",
    ],
    "tinyworld.benchmark": [
        "only=[none]", "rows.x.config=OUT/none.yaml", "rows.x.overrides=3", "ae_ckpt=OUT/none.pt",
        "folder=", "generator_ckpt=OUT/none.pt",
    ],
    "tinyworld.report": [
        "config=OUT/none.yaml", "short_frames=41", "generator_ckpt=OUT/none.pt", "folder=", "model_root=OUT",
        "generator_ckpt=FAMILY/checkpoints/miniature.safetensors", "folder=FAMILY/run.yaml",
    ],
    "tinyworld.oracle_memory": [
        "config=OUT/none.yaml", "frames=3", "config=configs/tinyworld_native.yaml", "generator_ckpt=OUT/none.pt",
        "model_root=OUT", "generator_ckpt=FAMILY/run.yaml",
    ],
    "tinyworld.changed": [
        "config=OUT/none.yaml", "frames=84", "config=configs/tinyworld_native.yaml", "generator_ckpt=OUT/none.pt",
    ],
    "benchmarks.run": [
        "size=14b height=16384 width=16384", "height=17", "attention_backend=none", "device=cuda", "output=",
        "output=FAMILY", "output=FAMILY/run.yaml/x",
    ],
    "benchmarks.long": ["config=OUT/none.yaml", "frames=3", "only=none", "output=", "output=FAMILY/run.yaml"],
    "benchmarks.storage": ["OUT/none.yaml", "FAMILY/prompts.txt", "FAMILY", "FAMILY/run.yaml more", "a=1", "--x"],
    "benchmarks.ae_loader": ["", "--files 0", "--files x", "--frames 3", "--files 1e9", "more"],
    "benchmarks.weights": ["", "FAMILY", "FAMILY none", "OUT check", "FAMILY check --height 0", "FAMILY check"],
    "tinyworld.truth": ["--clips 0", "--frames x", "--vae OUT/none", "--vae FAMILY/run.yaml", "--clips 1e12", "more"],
    "tests.make_random_weights": ["", "OUT --size 2b", "OUT --only none", "OUT --seed -1", "FAMILY/run.yaml"],
    "download": [
        "", "none", "longlive --root=", "longlive --nothing", "longlive --endpoint nowhere", "longlive more",
        "longlive --root FAMILY/run.yaml", "tinyworld --check more",
    ],
    "evaluation": [
        "OUT/none", "FAMILY/latents", "FAMILY/run.yaml", "=FAMILY/videos", "a=OUT",
        "FAMILY/videos --out FAMILY/run.yaml",
        "", "FAMILY/videos --workers 0", "FAMILY/videos --workers x", "FAMILY/videos --seed -1",
        "FAMILY/videos --dino on", "FAMILY/videos --nothing",
    ],
    "evaluation.retrieval": [
        "--seeds 0", "--seeds 1e9", "--overlap nan", "--overlap 2", "--memory 0", "--memory 99", "--local -1",
        "--exclude -1", "--block 0", "--device foo", "--ckpt OUT/none.pt", "--ckpt FAMILY/run.yaml", "--sink -1",
        "--data OUT/none", "--data FAMILY/videos", "--ckpt avg_pool=FAMILY/checkpoints/miniature_ae.pt", "--nothing",
    ],
    "evaluation.vbench": [
        "", "export", "export OUT/none", "export FAMILY/videos --out=", "table OUT/none", "table --backbone none",
        "table FAMILY/run.yaml", "nothing",
    ],
}  # fmt: skip
GIVEN = [(command, text) for command, texts in ARGUMENTS.items() for text in texts]


@pytest.mark.parametrize(("command", "text"), GIVEN, ids=str)
def test_wrong_arguments_are_one_line(command, text, family, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    words = [text] if "{" in text else text.split()
    if text == "prompt=":
        words = ["prompt="]
    refused(command, words, family, tmp_path, monkeypatch, capsys)


def empty(content: bytes) -> bytes:
    return b""


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def flipped(content: bytes) -> bytes:
    """One bit of the first byte: text is none any more, and lengths and signatures are others."""
    return bytes([content[0] ^ 0x80]) + content[1:]


RUN_FILES = [
    "run.yaml", "prompts.txt", "checkpoints/miniature.safetensors", "checkpoints/miniature_ae.pt", "lora.safetensors",
    "wan_models/miniature/config.json", "wan_models/miniature/vae/config.json",
    "wan_models/miniature/vae/diffusion_pytorch_model.safetensors", "wan_models/miniature/text_encoder/config.json",
    "wan_models/miniature/text_encoder/model.safetensors", "wan_models/miniature/tokenizer/tokenizer.json",
]  # fmt: skip
BROKEN = [(file, way) for file in RUN_FILES for way in (empty, halved, zeroed, flipped)]
WHOLE_WHEN_CUT = {("run.yaml", halved), ("prompts.txt", halved)}  # half a list of lines is one as well


def named(part: object) -> str:
    """A test's name of its parts: a function's is its own, the same in every process."""
    return getattr(part, "__name__", str(part))


@pytest.mark.parametrize(("file", "way"), [case for case in BROKEN if case not in WHOLE_WHEN_CUT], ids=named)
def test_a_broken_file_is_named_in_one_line(file, way, family, tmp_path, monkeypatch, capsys):
    name = "generate_latent" if way is flipped else "inference"
    broken = tmp_path / "family"
    shutil.copytree(family, broken)
    config = broken / "run.yaml"
    config.write_text(config.read_text().replace(str(family), str(broken)))
    (broken / file).write_bytes(way((broken / file).read_bytes()))
    lora = f"lora_ckpt={broken}/lora.safetensors"
    said = refused(name, [lora], broken, tmp_path, monkeypatch, capsys)
    named = Path(file).parent.name if file.endswith((".json", "model.safetensors")) else Path(file).name
    assert named in said, said


@pytest.mark.parametrize("way", [empty, halved, zeroed, flipped], ids=named)
@pytest.mark.parametrize("command", ["ae.train", "evaluation.retrieval"])
def test_broken_latents_are_named_in_one_line(command, way, family, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "latents"
    shutil.copytree(family / "latents", broken)
    for path in broken.iterdir():
        path.write_bytes(way(path.read_bytes()))
    where = f"data_dir={broken}" if command == "ae.train" else f"--data={broken}"
    assert "latent" in refused(command, [where], family, tmp_path, monkeypatch, capsys)
