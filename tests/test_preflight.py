"""A run is planned before it starts: bytes by part, what fits; and presets and caches change no number."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import build
from pipeline.build import load
from pipeline.config import RunConfig, load_config
from pipeline.footprint import Free, MemoryPlan, Part, Phase
from pipeline.offload import offload_text_encoder, offload_transformer
from pipeline.pipeline import Pipeline
from pipeline.preflight import Preflight, describe_device, model_folder, preflight
from pipeline.text import TextCache, encode_prompts, fingerprint
from tests.miniature import latentmem, make_family, make_tokenizer
from utils.errors import UserError
from wan.params import WanParams
from wan.text_encoder import TextEncoder, find_text_encoder

GOLDENS = Path(__file__).parent / "goldens"
GPU, CPU = torch.device("cuda"), torch.device("cpu")
GB = 10**9


def plan(free: Free, *parts: Part) -> MemoryPlan:
    return MemoryPlan((Phase("encoding the prompts", (Part("encoder", 11 * GB),)), Phase("generating", parts)), free)


def test_phases_follow_each_other_and_estimates_refuse_nothing():
    parts = Part("weights", 3 * GB, remedy="fewer"), Part("work", 4 * GB, estimated=True), Part("frames", 0, 31 * GB)
    assert plan(Free(12 * GB, 32 * GB), *parts).problem() is None
    assert "encoding the prompts needs 11.0 GB of device memory" in plan(Free(10 * GB, 32 * GB), *parts).problem()
    problem = plan(Free(12 * GB, 30 * GB), *parts).problem()
    assert problem.startswith(
        "generating needs 31.0 GB of host memory and 30.0 GB are free; 31.0 GB of it are the frames"
    )


def test_the_table_shows_every_part_and_what_may_be_tight():
    tight = plan(Free(12 * GB, 40 * GB), Part("weights", 9 * GB), Part("work", 4 * GB, estimated=True))
    rows = tight.table().splitlines()
    assert rows[0].split() == ["GB", "device", "host"]
    assert "  work, estimated" in rows[4] and rows[4].split()[-2:] == ["4.0", "-"]
    assert rows[5].split() == ["generating,", "in", "all", "13.0", "-"] and rows[6].split() == ["free", "12.0", "40.0"]
    assert rows[7].startswith("note: generating may not fit into device memory")
    assert "device" not in MemoryPlan(tight.phases, Free(None, 40 * GB)).table().splitlines()[0]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict:
    """Full-size files in the published layout; their tensors repeat one number, so that they are small."""
    root = tmp_path_factory.mktemp("published")
    folder = root / "wan_models" / "Wan2.1-T2V-1.3B"
    make_tokenizer().save_pretrained(folder / "google" / "umt5-xxl")
    zero = torch.zeros(1, dtype=torch.bfloat16)
    for keys, path, prefix in (
        ("backbone_1_3b", root / "causal_forcing.pt", "model."),
        ("umt5_xxl_encoder", folder / "models_t5_umt5-xxl-enc-bf16.pth", ""),
        ("vae", folder / "Wan2.1_VAE.pth", ""),
    ):
        shapes = json.loads((GOLDENS / f"{keys}_keys.json").read_text())
        tensors = {prefix + key: zero.expand(shape) for key, shape in shapes}
        torch.save({"generator": tensors} if prefix else tensors, path)
    return {
        "generator_ckpt": str(root / "causal_forcing.pt"),
        "model_root": str(root / "wan_models"),
        "model_kwargs": {"use_latentmem": True},
        "dtype": "bfloat16",
    }


def looked(settings: dict, monkeypatch, free: int = 24 * GB, **more: object) -> Preflight:
    """The preflight of a run on a GPU with so many free bytes, wherever the test runs, whether it fits or not."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr("pipeline.preflight.find_device", lambda name: GPU)
    monkeypatch.setattr("pipeline.preflight.host_free", lambda: 64 * GB)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryPlan, "problem", lambda plan: None)
        return preflight(load_config(overrides=settings | more))


def test_the_full_size_model_is_planned_from_the_published_files(published, monkeypatch):
    text, generating = looked(published, monkeypatch).footprint.phases
    assert text.total("device") == 2 * 5_680_910_336
    parts = {part.name.split(" of ")[0]: part for part in generating.parts}
    assert parts["transformer's weights"].device == 2 * 1_418_996_800
    assert parts["VAE's weights"].device == 2 * 126_892_531
    frame = 2 * 30 * 1560 * 1536 * 2  # key and value, layers, tokens, dim, bytes
    cross = 2 * 30 * 512 * 1536 * 2
    assert parts["context's keys and values"].device == (6 + 1 + 6 + 12) * frame + cross
    assert parts["keys and values"].host == (120 - 6 - 1) * frame and frame == 287_539_200


def test_presets_move_parts_and_shorter_weights_shrink_them(published, monkeypatch):
    monkeypatch.setattr("pipeline.preflight.require_quantization", lambda *_: None)  # wherever the test runs

    def parts(**more: object) -> list[Part]:
        found = looked(published, monkeypatch, **more).footprint
        return [found.phases[0].parts[0], found.phases[1].parts[0], found.phases[1].parts[-1]]

    text, weights, frames = parts()
    low_text, low_weights, _ = parts(memory="low")
    assert weights.device / 15 < low_weights.device < weights.device / 10  # two of 30 blocks, and what is in none
    assert low_weights.host == weights.device
    assert low_text.device < text.device / 14 and low_text.host == text.device  # two of 24, and no embedding
    fast = looked(published, monkeypatch, memory="fast", free=80 * GB)
    kept = fast.footprint.phases[1].parts[-1]
    assert kept.host == 0 and kept.device == frames.host <= fast.bank_bytes
    assert 0 < looked(published, monkeypatch, memory="fast").bank_bytes < fast.bank_bytes
    assert weights.device / 2 < parts(weights="int8")[1].device < weights.device * 0.53
    # beside one byte for two, a scale of 4 bytes for the 1560 x 128 numbers of a head
    assert parts(bank={"storage": "int8"})[2].host == pytest.approx(frames.host / 2, rel=1e-4)


def test_low_memory_fits_a_card_of_12_gb(published, monkeypatch):
    generating = looked(published, monkeypatch, memory="low", free=12 * 2**30).footprint.phases[1]
    parts = {part.name: part for part in generating.parts}
    assert 1.8 * GB < parts["VAE's past"].device < 2 * GB and not parts["VAE's past"].estimated
    assert parts["CUDA's context and workspaces"].device > 0
    assert generating.total("device") < 12 * 2**30
    beside = looked(published, monkeypatch).footprint.phases[1]
    assert beside.total("device") - beside.parts[0].device > generating.total("device") - generating.parts[0].device


def test_the_device_is_named_and_a_large_model_on_a_cpu_is_noted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    large, small = WanParams(), WanParams(dim=128)
    assert describe_device(torch.device("cuda", 1), torch.bfloat16, large) == "device: NVIDIA X (cuda:1), bfloat16"
    assert describe_device(CPU, torch.float32, small) == "device: CPU, float32"
    assert "note: no GPU is used" in describe_device(CPU, torch.float32, large)


def test_what_does_not_fit_comes_with_a_remedy(published, monkeypatch):
    assert looked(published, monkeypatch).footprint.problem() is None
    small = looked(published, monkeypatch, free=8 * GB).footprint.problem()
    assert "encoding the prompts needs 11.4 GB" in small and "memory: low or text_device: cpu" in small
    long = looked(published, monkeypatch, num_output_frames=30_000).footprint.problem()
    assert "num_output_frames 30000" in long and "bank.capacity" in long
    high = looked(published, monkeypatch, memory="low", free=8 * GB, height=960, width=1664).footprint.problem()
    assert "local_attn_size" in high


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("family")
    return make_family(root) | {"model_kwargs": latentmem(root), "num_output_frames": 12}


@pytest.fixture
def config(settings) -> RunConfig:
    return load_config(overrides=settings)


def latents(pipeline: Pipeline) -> torch.Tensor:
    return torch.cat([block.latents for _ in range(2) for block in pipeline.blocks("a red house")], dim=1)


def test_offloaded_weights_give_the_same_video(config):
    pipeline = load(config)
    expected = latents(pipeline)
    offload_transformer(pipeline.model, CPU)
    assert torch.equal(latents(pipeline), expected)


def test_an_offloaded_text_encoder_gives_the_same_embeddings(config):
    encoder = TextEncoder(*find_text_encoder(model_folder(config)), 16)
    expected = encoder(["a red house"])
    offload_text_encoder(encoder, CPU)
    assert torch.equal(encoder(["a red house"]), expected)


@pytest.fixture
def torchao(monkeypatch):
    """torchao, where it is: installed, or in a folder of its own, as its warnings would be in every command's way."""
    if folder := os.environ.get("TORCHAO"):
        monkeypatch.syspath_prepend(folder)
    return pytest.importorskip("torchao")


@pytest.mark.parametrize("form", ["cast_fp8", "fp8_products", "fp8", "int8"])
def test_shorter_weights_stay_near_the_whole_ones(form, config, request):
    if form in ("fp8", "int8"):
        request.getfixturevalue("torchao")
    expected = latents(load(config))
    pipeline = load(replace(config, weights=form))
    found = latents(pipeline)
    assert pipeline.model.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 0.2
    offload_transformer(pipeline.model, CPU)
    assert torch.equal(latents(pipeline), found)


def test_weights_that_need_torchao_say_so(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match=r"need torchao; pip install torchao, or use weights: cast_fp8"):
        preflight(load_config(overrides=settings | {"weights": "int8"}))


class CountingEncoder:
    """Embeddings of three tokens of four; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompts) -> torch.Tensor:
        self.asked += prompts
        return torch.stack([torch.tensor([[len(p)] * 2, [1, 0], [0, 2], [0, 0]]) for p in prompts]).bfloat16()


def test_a_prompt_is_encoded_once_for_an_encoder(tmp_path):
    encoder, cache = CountingEncoder(), TextCache(tmp_path / "cache", "one")
    first = encode_prompts(lambda: encoder, ["a", "bb", "a"], cache)
    assert encoder.asked == ["a", "bb"]
    again = encode_prompts(lambda: encoder, [" bb ", "ccc"], cache)  # as the encoder sees it, " bb " is "bb"
    assert encoder.asked == ["a", "bb", "ccc"]
    assert torch.equal(again[" bb "], first["bb"]) and again[" bb "].dtype == torch.bfloat16
    encode_prompts(lambda: encoder, ["a"], TextCache(tmp_path / "cache", "two"))
    encode_prompts(lambda: encoder, ["a"])
    assert encoder.asked[3:] == ["a", "a"]


def test_a_damaged_cache_file_is_made_anew(tmp_path):
    encoder, cache = CountingEncoder(), TextCache(tmp_path, "one")
    first = encode_prompts(lambda: encoder, ["a"], cache)
    cache.path("a").write_bytes(b"half")
    assert torch.equal(encode_prompts(lambda: encoder, ["a"], cache)["a"], first["a"])
    assert torch.equal(cache.get("a"), first["a"])


def test_a_cached_prompt_needs_no_encoder(settings, tmp_path, monkeypatch):
    found = preflight(load_config(overrides=settings | {"text_cache": str(tmp_path)}))
    expected = build.embed(found, ["a red house"])["a red house"]
    monkeypatch.setattr(build, "TextEncoder", None)
    assert torch.equal(build.embed(found, ["a red house"])["a red house"], expected)
    with pytest.raises(TypeError):
        build.embed(preflight(load_config(overrides=settings | {"text_cache": None})), ["a red house"])


def test_an_encoder_is_told_from_another_by_size_time_head_and_tail(tmp_path):
    (tmp_path / "a").write_bytes(b"1" * 100)
    before = fingerprint([tmp_path])
    assert fingerprint([tmp_path]) == before
    (tmp_path / "a").write_bytes(b"1" * 99 + b"2")
    assert fingerprint([tmp_path]) != before


@pytest.mark.parametrize(
    "override, words",
    [("memory=tiny", "low, balanced, fast"), ("weights=fp16", "same, cast_fp8, fp8, fp8_products, int8")],
)
def test_an_unknown_choice_lists_the_choices(settings, override, words):
    key, value = override.split("=")
    with pytest.raises(UserError, match=words):
        load_config(overrides=settings | {key: value})
