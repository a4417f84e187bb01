"""The engine computes what the reference computes: recorded numbers, held to their stated tolerance.

The tolerances belong to the recordings: float32, made on another processor. One forward of values up to 5 through
two layers is held to 2e-5, as whole generations are; text encoder and autoencoder, of values up to 4 and 1, to 1e-5.
The plainest kernels differ from the recordings by up to 3e-6, those of AVX2 and AVX-512 by as much.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from pipeline.bank.bank import Bank
from pipeline.bank.codec import Plain
from pipeline.bank.tiers import RamTier
from pipeline.config import CorpusConfig, RunConfig, load_config
from pipeline.frames import FrameShape
from pipeline.kv_cache import KVCache
from pipeline.policies import RetrievedMemory, SlidingWindow
from pipeline.sampler import FlowSchedule
from tests.replay import replay
from wan.checkpoint import load_generator
from wan.model import CausalWanModel
from wan.params import SIZES, WanParams, params_from_dict
from wan.text_encoder import load_umt5, umt5_config, umt5_tensors
from wan.vae import StreamingDecoder, encode, load_vae

GOLDENS = Path(__file__).parent / "goldens"
CONFIGS = [path for path in sorted((GOLDENS / "configs").glob("*.json")) if path.stem.endswith(("native", "latentmem"))]
ROLLOUTS = sorted([*GOLDENS.glob("rollout_*.json"), *GOLDENS.glob("methods/*.json")])


def golden(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((GOLDENS / f"{name}.json").read_text()), load_file(GOLDENS / f"{name}.safetensors")


def host_bank() -> Bank:
    return Bank([RamTier("host", 100)], Plain(torch.float32))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


@pytest.mark.parametrize("path", ROLLOUTS, ids=lambda path: path.stem)
def test_whole_generations_replay(path):
    assert replay(path)


def test_a_replay_that_differs_fails(tmp_path):
    record, tensors = golden("rollout_native")
    tensors["latents"][0, -1] += 1e-3
    record["weights"]["generator_ckpt"] = str(GOLDENS / "backbone_weights.safetensors")
    (tmp_path / "changed.json").write_text(json.dumps(record))
    save_file(tensors, tmp_path / "changed.safetensors")
    assert not replay(tmp_path / "changed.json")


@pytest.mark.parametrize("method", ["native", "latentmem"])
def test_forwards_over_one_cache_equal_the_reference(method, tmp_path):
    record, tensors = golden(f"backbone_forward_{method}")
    sizes = record["config"]
    params = params_from_dict(sizes, "golden")
    (tmp_path / "config.json").write_text(json.dumps(params.to_dict()))
    model = load_generator(GOLDENS / "backbone_weights.safetensors", "golden", tmp_path)
    window = {"local_attn_size": sizes["local_attn_size"], "sink_size": sizes["sink_size"]}
    if method == "native":
        policy, bank = SlidingWindow(**window), None
    else:
        policy, bank = RetrievedMemory(**window, memory_size=sizes["memory_size"]), host_bank()
    height, width = tensors["blk0a.x"].shape[-2:]
    cache = KVCache(FrameShape.of(params, height, width), policy, bank)
    with torch.inference_mode():
        text = model.encode_text(tensors["context"])
        for call in record["calls"]:
            tag = call["tag"]
            if tag.endswith("a"):  # a block's first forward; the recording counts retrieved frames from the sink on
                chosen = [[index + policy.sink_size for index in row] for row in call["memory_indices"] or []]
                plan = policy.plan(call["start_frame"], chosen)
                cache.begin(plan)
            if tag.endswith("c"):  # its last, on the clean latents
                cache.commit(plan)
            flow = model(tensors[f"{tag}.x"], tensors[f"{tag}.t"], text, cache)
            assert distance(flow, tensors[f"{tag}.flow"]) < 2e-5, tag


@pytest.mark.parametrize("method", ["native", "latentmem"])
def test_the_cache_attends_to_the_frames_of_the_trace(method):
    """Values that spell frame and forward show what each forward sees, and which forward it comes from."""
    trace = json.loads((GOLDENS / f"trace_{method}.json").read_text())
    kwargs = trace["args"]["model_kwargs"]
    names = ("local_attn_size", "sink_size", "memory_size", "recent_exclude")
    sizes = {name: kwargs[name] for name in names if name in kwargs}
    if method == "native":
        policy, bank = SlidingWindow(local_attn_size=sizes["local_attn_size"], sink_size=sizes["sink_size"]), None
    else:
        policy, bank = RetrievedMemory(**sizes), host_bank()
    params = WanParams(dim=6, num_heads=1, num_layers=1)
    cache = KVCache(FrameShape.of(params, 2, 2), policy, bank)
    last = max(row["forward"] for row in trace["rows"])
    for row in trace["rows"]:
        start = row["block"] * policy.block
        retrieved = row["attended"][row.get("n_sink", 0) :][: row.get("n_mem", 0)]
        if row["forward"] == 0:
            assert set(retrieved) <= set(policy.candidates(start))
            assert len(retrieved) == min(policy.memory_size, len(policy.candidates(start)))
            plan = policy.plan(start, [retrieved] if retrieved else [])
            cache.begin(plan)
        if row["forward"] == last:
            cache.commit(plan)
        assert list(plan.attended()) == row["attended"]
        assert list(plan.positions()) == row["key_rope_t"]
        assert [piece.position for piece in plan.own] == row["query_rope_t"]
        code = torch.tensor([piece.frame * 10.0 + row["forward"] for piece in plan.own])
        v = code.view(1, -1, 1, 1).expand(1, -1, 1, 6)
        values = cache.update(0, torch.zeros_like(v), torch.zeros_like(v), v).values
        seen = values[0, :, 0, 0].int().tolist()
        assert sorted(code // 10 for code in seen) == sorted(
            row["attended"]
        )  # the cache orders retrieved frames itself
        expected = dict(zip(row["attended"], row["kv_from_forward"], strict=True))
        assert all(code % 10 == expected[code // 10] for code in seen)


def test_noise_schedule_equals_the_reference():
    _, tensors = golden("scheduler")
    schedule = FlowSchedule(shift=5.0)
    # float32, a handful of operations: eps is 1.2e-7 of the largest value, 1 for sigmas and 1000 for timesteps;
    # kernels of other processors were seen to differ by one eps
    assert distance(schedule.timesteps, tensors["timesteps"]) <= 1e-6 * 1000
    assert distance(schedule.sigmas, tensors["sigmas"]) <= 1e-6
    steps = torch.tensor(schedule.steps([1000, 750, 500, 250], warp=True))
    assert distance(steps, tensors["warped_denoising_steps"]) <= 1e-6 * 1000  # entries of the same table
    for i, t in enumerate(tensors["an_t"].tolist()):
        # values up to 5, two products and a sum
        noisy = schedule.add_noise(tensors["an_x0"][i], tensors["an_noise"][i], t)
        assert distance(noisy, tensors["an_out"][i]) <= 1e-6
        clean = schedule.to_clean(tensors["conv_flow"][i], tensors["conv_xt"][i], tensors["conv_t"][i].item())
        assert distance(clean, tensors["conv_x0"][i]) <= 1e-6


def test_vae_encodes_and_decodes_as_the_reference():
    _, tensors = golden("vae")
    vae = load_vae(GOLDENS / "vae_weights.safetensors")
    assert distance(torch.tensor(vae.config.latents_mean), tensors["mean"]) == 0
    assert distance(torch.tensor(vae.config.latents_std), tensors["std"]) == 0
    video = tensors["video"].transpose(1, 2)
    latents = tensors["encoded"].transpose(1, 2) if tensors["encoded"].shape[2] == 16 else tensors["encoded"]
    found = encode(vae, video)
    assert distance(found, latents if found.shape == latents.shape else latents.transpose(1, 2)) <= 1e-5
    assert distance(StreamingDecoder(vae)(tensors["latents"]), tensors["decoded"]) <= 1e-5


def test_streamed_decode_equals_decoding_at_once():
    _, tensors = golden("vae")
    vae = load_vae(GOLDENS / "vae_weights.safetensors")
    latents = tensors["latents6"]
    decoder = StreamingDecoder(vae)
    streamed = torch.cat([decoder(part) for part in latents.split([1, 3, 2], dim=1)], dim=1)
    assert distance(streamed, StreamingDecoder(vae)(latents)) == 0
    assert distance(streamed, tensors["decoded6"]) <= 1e-5
    assert streamed.shape[1] == 1 + 4 * (latents.shape[1] - 1)


def test_text_encoder_equals_the_reference(tmp_path):
    _, tensors = golden("t5")
    save_file({k[2:]: v for k, v in tensors.items() if k.startswith("w.")}, tmp_path / "t5.safetensors")
    model = load_umt5(tmp_path / "t5.safetensors", "cpu", torch.float32)
    with torch.inference_mode():
        out = model(tensors["ids"], attention_mask=tensors["mask"]).last_hidden_state
    assert distance(out, tensors["out"]) <= 1e-5


def keys_of(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((GOLDENS / f"{name}_keys.json").read_text())}


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_full_size_transformer_has_the_published_keys_and_shapes():
    with torch.device("meta"):
        model = CausalWanModel(**SIZES["Wan2.1-T2V-1.3B"].to_dict())
    assert shapes(model) == keys_of("backbone_1_3b")


def test_full_size_text_encoder_takes_the_published_keys_and_shapes():
    original = {key: torch.empty(shape, device="meta") for key, shape in keys_of("umt5_xxl_encoder").items()}
    with torch.device("meta"):
        model = UMT5EncoderModel(umt5_config(original))
    assert shapes(model) == {key: tuple(value.shape) for key, value in umt5_tensors(original).items()}


def test_full_size_vae_takes_the_published_keys_and_shapes():
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    original = {key: torch.empty(shape, device="meta") for key, shape in keys_of("vae").items()}
    with torch.device("meta"):
        vae = AutoencoderKLWan(base_dim=original["encoder.conv1.weight"].shape[0])
    converted = convert_wan_vae_to_diffusers(original)
    assert shapes(vae) == {key: tuple(value.shape) for key, value in converted.items()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_published_settings_load_unchanged(path):
    import yaml

    published = json.loads(path.read_text())
    shipped = Path("configs") / f"{path.stem}.yaml"
    assert yaml.safe_load(shipped.read_text()) == published
    config = load_config(shipped)
    assert isinstance(config, RunConfig)
    assert config.policy().local_attn_size == published["model_kwargs"]["local_attn_size"]


def test_published_corpus_settings_load_unchanged():
    config = load_config("configs/generate_latent.yaml", schema=CorpusConfig)
    assert (config.sample_ratio, config.max_video_saves, config.adapter.rank) == (0.1, 2, 256)
