"""Every published form of a weight file loads to the same numbers; what does not fit is named, with its cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import build
from pipeline.config import load_config
from pipeline.context import Layout, SlidingWindow
from pipeline.kv_cache import KVCache
from tests.make_random_weights import make
from utils.errors import UserError
from utils.tensors import fill, read_tensors
from wan.checkpoint import add_lora, load_generator, read_generator
from wan.model import CausalWanModel
from wan.params import SIZES, WanParams, params_from_dict
from wan.text_encoder import load_umt5
from wan.vae import StreamingDecoder, load_vae

GOLDENS = Path(__file__).parent / "goldens"
GENERATOR = load_file(GOLDENS / "backbone_weights.safetensors")
PARAMS = params_from_dict(json.loads((GOLDENS / "rollout_native.json").read_text())["config"]["backbone"], "golden")
EMA = "model._fsdp_wrapped_module."


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """A model folder that says the sizes and nothing more."""
    folder = tmp_path_factory.mktemp("family")
    (folder / "config.json").write_text(json.dumps(PARAMS.to_dict()))
    return folder


def shard(tensors: dict, folder: Path, name: str = "diffusion_pytorch_model") -> Path:
    """Write tensors as two files and their index."""
    folder.mkdir(exist_ok=True)
    keys = sorted(tensors)
    parts = {f"{name}-0000{i + 1}-of-00002.safetensors": keys[i::2] for i in range(2)}
    for file, own in parts.items():
        save_file({key: tensors[key].clone() for key in own}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, own in parts.items() for key in own}}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    return folder


def as_diffusers(folder: Path) -> Path:
    """The golden backbone as diffusers itself would save it."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    model = WanTransformer3DModel(
        num_attention_heads=PARAMS.num_heads, attention_head_dim=PARAMS.head_dim, in_channels=PARAMS.in_dim,
        out_channels=PARAMS.out_dim, text_dim=PARAMS.text_dim, freq_dim=PARAMS.freq_dim, ffn_dim=PARAMS.ffn_dim,
        num_layers=PARAMS.num_layers,
    )  # fmt: skip
    model.load_state_dict(convert_wan_transformer_to_diffusers(dict(GENERATOR)))
    model.save_pretrained(folder, max_shard_size="150KB")
    return folder


def saved(content: dict, path: Path, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def prefixed(prefix: str) -> dict:
    return {prefix + key: value for key, value in GENERATOR.items()}


# Name -> (writer of the form into a folder, use_ema)
FORMS: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "generator": (lambda at: saved({"generator": prefixed("model.")}, at / "a.pt"), False),
    "generator beside EMA": (
        lambda at: saved({"generator": prefixed("model."), "generator_ema": {}, "step": 7}, at / "a.pt"),
        False,
    ),
    "EMA": (lambda at: saved({"generator": {}, "generator_ema": prefixed(EMA)}, at / "a.pt"), True),
    "EMA without FSDP": (lambda at: saved({"generator_ema": prefixed("model.")}, at / "a.pt"), True),
    "model": (lambda at: saved({"model": prefixed("")}, at / "a.pt"), False),
    "bare": (lambda at: saved(prefixed(""), at / "a.pth"), False),
    "bare with prefix": (lambda at: saved(prefixed("model."), at / "a.pt"), False),
    "format before 2020": (
        lambda at: saved({"generator": prefixed("model.")}, at / "a.pt", _use_new_zipfile_serialization=False),
        False,
    ),
    "safetensors": (lambda at: GOLDENS / "backbone_weights.safetensors", False),
    "shards": (lambda at: shard(GENERATOR, at / "wan"), False),
    "index": (lambda at: shard(GENERATOR, at / "wan") / "diffusion_pytorch_model.safetensors.index.json", False),
    "diffusers": (lambda at: as_diffusers(at / "transformer"), False),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_generator_gives_the_same_weights(form, family, tmp_path):
    write, use_ema = FORMS[form]
    model = load_generator(write(tmp_path), "golden", family, use_ema)
    weights = model.state_dict()
    assert weights.keys() == GENERATOR.keys()
    assert all(torch.equal(weights[key], GENERATOR[key]) for key in weights)
    assert model.params.num_heads == PARAMS.num_heads and not model.training


def test_a_diffusers_transformer_computes_what_diffusers_computes(tmp_path):
    """All frames in one block: the causal model then sees what the original sees."""
    theirs = WanTransformer3DModel.from_pretrained(as_diffusers(tmp_path / "transformer"))
    ours = load_generator(tmp_path / "transformer", "unknown", tmp_path)
    assert ours.params.num_heads == PARAMS.num_heads, "sizes come from the checkpoint's own config.json"
    x, text = torch.randn(2, 16, 3, 8, 12), torch.randn(2, PARAMS.text_len, PARAMS.text_dim)
    policy = SlidingWindow(Layout(window=4, sink=1))
    cache = KVCache(ours.params, policy, 8, 12, batch=2)
    cache.begin(policy.plan(0))
    with torch.inference_mode():
        flow = ours(x.transpose(1, 2), torch.full((2, 1), 700.0), ours.encode_text(text), cache)
        expected = theirs(x, torch.full((2,), 700.0), text).sample
    torch.testing.assert_close(flow.transpose(1, 2), expected, atol=2e-5, rtol=0)


def test_sizes_come_from_the_shapes_where_nothing_else_says(tmp_path):
    params = WanParams(dim=256, ffn_dim=64, num_heads=2, num_layers=1, text_dim=8, freq_dim=16)
    save_file(CausalWanModel(**params.to_dict()).state_dict(), tmp_path / "a.safetensors")
    assert read_generator(tmp_path / "a.safetensors", "mine", tmp_path)[0] == params


def unwritten(params: WanParams, path: Path, prefix: str = "model.", **more: tuple[int, ...]) -> Path:
    """A generator of any size whose tensors all repeat one number, so that its file is small."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in CausalWanModel(**params.to_dict()).state_dict().items()}
    zero = torch.zeros(1, dtype=torch.bfloat16)
    return saved({"generator": {prefix + key: zero.expand(shape) for key, shape in (shapes | more).items()}}, path)


@pytest.mark.parametrize("name", SIZES)
def test_full_size_checkpoints_are_recognised_by_name_and_by_shape(name, tmp_path):
    path = unwritten(SIZES[name], tmp_path / "a.pt")
    assert read_generator(path, name, tmp_path)[0] == read_generator(path, "other", tmp_path)[0] == SIZES[name]


def original(name: str) -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    return {key[2:]: value for key, value in tensors.items() if key.startswith("w.")} if name == "t5" else tensors


T5_FORMS = {
    "pth": lambda at: saved(original("t5"), at / "t5.pth"),
    "safetensors": lambda at: save_file(original("t5"), at / "t5.safetensors") or at / "t5.safetensors",
    "transformers": lambda at: resaved(load_umt5(T5_FORMS["pth"](at), "cpu", torch.float32), at / "text_encoder"),
    "transformers shards": lambda at: resaved(
        load_umt5(T5_FORMS["pth"](at), "cpu", torch.float32), at / "text_encoder", max_shard_size="40KB"
    ),
}
VAE_FORMS = {
    "pth": lambda at: saved(original("vae_weights"), at / "vae.pth"),
    "safetensors": lambda at: GOLDENS / "vae_weights.safetensors",
    "diffusers": lambda at: resaved(load_vae(GOLDENS / "vae_weights.safetensors"), at / "vae"),
    "diffusers file": lambda at: VAE_FORMS["diffusers"](at) / "diffusion_pytorch_model.safetensors",
}


def resaved(model: nn.Module, folder: Path, **options: str) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("form", T5_FORMS)
def test_every_form_of_the_text_encoder_gives_the_same_embeddings(form, tmp_path):
    tensors = load_file(GOLDENS / "t5.safetensors")
    path = T5_FORMS[form](tmp_path)
    assert len(list(path.glob("*.safetensors"))) != 1 or "shards" not in form
    with torch.inference_mode():
        model = load_umt5(path, "cpu", torch.float32)
        out = model(tensors["ids"], attention_mask=tensors["mask"]).last_hidden_state
    torch.testing.assert_close(out, tensors["out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", VAE_FORMS)
def test_every_form_of_the_vae_decodes_the_same(form, tmp_path):
    tensors = load_file(GOLDENS / "vae.safetensors")
    out = StreamingDecoder(load_vae(VAE_FORMS[form](tmp_path)))(tensors["latents"])
    torch.testing.assert_close(out, tensors["decoded"], atol=1e-5, rtol=0)


LORA = torch.load(GOLDENS / "ckpt_lora_raw.pt", weights_only=True)
LORA_FORMS = {
    "generator_lora": lambda at: GOLDENS / "ckpt_lora.pt",
    "bare": lambda at: GOLDENS / "ckpt_lora_raw.pt",
    "safetensors": lambda at: save_file(LORA, at / "lora.safetensors") or at / "lora.safetensors",
    "live adapter": lambda at: saved(
        {k.replace(".weight", ".default.weight"): v for k, v in LORA.items()}, at / "a.pt"
    ),
}


def tuned(family: Path, lora: Path | None, **options: bool) -> torch.Tensor:
    """A forward's flow with a LoRA or without."""
    model = load_generator(GOLDENS / "backbone_weights.safetensors", "golden", family)
    if lora:
        add_lora(model, lora, rank=4, alpha=6.0, **options)
    policy = SlidingWindow(Layout(window=4, sink=1))
    cache = KVCache(model.params, policy, 4, 4)
    cache.begin(policy.plan(0))
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        text = model.encode_text(torch.randn(1, PARAMS.text_len, PARAMS.text_dim, generator=draw))
        return model(torch.randn(1, 3, 16, 4, 4, generator=draw), torch.full((1, 1), 500.0), text, cache)


@pytest.mark.parametrize("form", LORA_FORMS)
def test_every_form_of_a_lora_merged_equals_unmerged(form, family, tmp_path):
    path = LORA_FORMS[form](tmp_path)
    merged = tuned(family, path)
    torch.testing.assert_close(merged, tuned(family, path, merge=False), atol=1e-5, rtol=0)
    torch.testing.assert_close(merged, tuned(family, GOLDENS / "ckpt_lora.pt"), atol=0, rtol=0)
    assert (merged - tuned(family, None)).abs().max() > 1e-3


def test_longlives_own_settings_load(tmp_path):
    """A sink of three frames, a LoRA, and keys that change nothing here, under the file names of its repository."""
    own = {
        "denoising_step_list": [1000, 750, 500, 250], "warp_denoising_step": True, "num_frame_per_block": 3,
        "model_name": "Wan2.1-T2V-1.3B", "global_sink": True, "context_noise": 0, "use_ema": False, "seed": 1,
        "model_kwargs": {"local_attn_size": 12, "timestep_shift": 5.0, "sink_size": 3},
        "data_path": "longlive_models/prompts/vidprom_filtered_extended.txt", "num_output_frames": 120,
        "generator_ckpt": "longlive_models/models/longlive_base.pt", "lora_ckpt": "longlive_models/models/lora.pt",
        "adapter": {"type": "lora", "rank": 256, "alpha": 256, "dropout": 0.0, "dtype": "bfloat16", "verbose": False},
        "output_folder": "videos/long", "inference_iter": -1, "num_samples": 1, "save_with_index": True,
    }  # fmt: skip
    (tmp_path / "longlive.yaml").write_text(json.dumps(own))  # JSON is YAML
    config = load_config(tmp_path / "longlive.yaml")
    assert (config.layout().window, config.layout().sink, config.adapter.rank) == (12, 3, 256)


def test_random_weights_have_the_published_layout(tmp_path):
    """What measurements are made with passes the checks of a real run."""
    make(tmp_path, "tiny", ["generator", "text_encoder", "vae", "ae"], height=64, width=96)
    config = load_config(
        "configs/causal_forcing_latentmem.yaml",
        [
            f"generator_ckpt={tmp_path}/checkpoints/causal_forcing.pt", f"model_root={tmp_path}/wan_models",
            f"model_kwargs.ae_ckpt={tmp_path}/checkpoints/ae_latent_mem.pt", "height=64", "width=96", "device=cpu",
        ],
    )  # fmt: skip
    build.check(config)


def cut(path: Path, to: Path, keep: float = 0.6) -> Path:
    data = path.read_bytes()
    to.write_bytes(data[: int(len(data) * keep)])
    return to


def text_file(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def missing_shard(at: Path) -> Path:
    folder = shard(GENERATOR, at / "wan")
    next(folder.glob("*-00002-of-*")).unlink()
    return folder


I2V = {"blocks.0.cross_attn.k_img.weight": (48, 48)}

# Name -> (writer of the file into a folder, words of the one line)
FAULTS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "half a .pt": (lambda at: cut(GOLDENS / "ckpt_generator.pt", at / "a.pt"), ["a.pt", "truncated", "get it again"]),
    "half a .safetensors": (
        lambda at: cut(GOLDENS / "backbone_weights.safetensors", at / "a.safetensors"),
        ["truncated", "of 347,912 bytes"],
    ),
    "the first bytes of a .safetensors": (
        lambda at: cut(GOLDENS / "backbone_weights.safetensors", at / "a.safetensors", 0.01),
        ["truncated", "header"],
    ),
    "empty": (lambda at: text_file(at / "a.pt", ""), ["is empty"]),
    "Git LFS pointer": (
        lambda at: text_file(at / "a.pt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ["Git LFS pointer"],
    ),
    "web page": (lambda at: text_file(at / "a.safetensors", "<!doctype html><html></html>"), ["no safetensors file"]),
    "code": (lambda at: text_file(at / "a.pt", "cposix\nsystem\n(S'true'\ntR."), ["refused", "posix.system"]),
    "missing shard": (missing_shard, ["-00002-of-00002.safetensors", "does not exist"]),
    "empty folder": (lambda at: at, ["holds no .safetensors file"]),
    "LoRA in a wrapper": (lambda at: GOLDENS / "ckpt_lora.pt", ["it is a LoRA", "lora_ckpt"]),
    "bare LoRA": (lambda at: GOLDENS / "ckpt_lora_raw.pt", ["it is a LoRA", "lora_ckpt"]),
    "text encoder": (lambda at: T5_FORMS["pth"](at), ["it is a text encoder"]),
    "VAE": (lambda at: GOLDENS / "vae_weights.safetensors", ["it is an autoencoder"]),
    "image to video": (lambda at: unwritten(PARAMS, at / "a.pt", **I2V), ["k_img.weight is foreign", "image-to-video"]),
    "a layer more": (
        lambda at: unwritten(WanParams(**PARAMS.to_dict() | {"num_layers": 3}), at / "a.pt"),
        ["num_layers 3", "says 2"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_serve_is_named_with_its_cause(fault, family, tmp_path):
    write, words = FAULTS[fault]
    with pytest.raises(UserError) as error:
        read_generator(write(tmp_path), "golden", family)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_weights_of_another_size_name_the_model_they_belong_to(tmp_path):
    path = unwritten(SIZES["Wan2.1-T2V-14B"], tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"dim 5120, .* says 1536, .*set model_name: Wan2.1-T2V-14B"):
        read_generator(path, "Wan2.1-T2V-1.3B", tmp_path)


@pytest.mark.parametrize(
    "content, use_ema, words",
    [({"generator": {}}, True, "no EMA weights"), ({"generator_ema": {}}, False, "only EMA weights")],
)
def test_absent_weights_are_said_to_be_absent(content, use_ema, words, family, tmp_path):
    with pytest.raises(UserError, match=words):
        read_generator(saved(content, tmp_path / "a.pt"), "golden", family, use_ema)


def test_a_lora_of_another_rank_offers_the_rank_found(family):
    model = load_generator(GOLDENS / "backbone_weights.safetensors", "golden", family)
    with pytest.raises(UserError, match=r"rank 4 where adapter\.rank is 256; set adapter\.rank: 4"):
        add_lora(model, GOLDENS / "ckpt_lora.pt", 256, 256)
    with pytest.raises(UserError, match=r"no LoRA weights; .* generator_ckpt"):
        add_lora(model, GOLDENS / "ckpt_generator.pt", 4, 4)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is resident")
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_a_loaded_file_does_not_stay_in_memory(form, tmp_path):
    path = tmp_path / f"weights.{form}"
    content = {f"{i}.weight": torch.full((1024, 1024), float(i)) for i in range(4)}
    torch.save(content, path) if form == "pt" else save_file(content, path)
    tensors = read_tensors(path, "weights")
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(4)))
    fill(model, tensors, "weights", "cpu", torch.bfloat16)
    assert all((model[i].weight == i).all() for i in range(4))
    rows = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    resident = [int(row.split("Rss:")[1].split()[0]) for row in rows]  # in KiB, of 16 MiB
    assert resident and sum(resident) < 1024
    shutil.copy(path, tmp_path / "again")  # the pages let go are those of the file still
    assert all((tensor == float(key[0])).all() for key, tensor in tensors.items())
