"""Every published form of a weight file loads to the same numbers; what does not fit is named, with its cause."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.config import load_config
from pipeline.frames import FrameShape
from pipeline.kv_cache import KVCache
from pipeline.policies import SlidingWindow
from pipeline.preflight import preflight
from tests.make_random_weights import make
from utils.errors import UserError
from utils.tensors import fill, read_tensors
from wan.checkpoint import load_generator, read_generator
from wan.model import CausalWanModel
from wan.params import SIZES, LatentFormat, WanParams, latent_format, params_from_dict
from wan.text_encoder import load_umt5
from wan.vae import StreamingDecoder, load_vae

GOLDENS = Path(__file__).parent / "goldens"
GENERATOR = load_file(GOLDENS / "backbone_weights.safetensors")
PARAMS = params_from_dict(json.loads((GOLDENS / "rollout_native.json").read_text())["config"]["backbone"], "golden")
EMA = "model._fsdp_wrapped_module."
WAN_2_2 = {
    "z_dim": 48, "patch_size": 2, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True],
}  # fmt: skip


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
    "state_dict": (lambda at: saved({"state_dict": prefixed("module."), "epoch": 3}, at / "a.pt"), False),
    "state_dict of a trainer": (
        lambda at: saved({"state_dict": {"generator": prefixed("model."), "critic": {}}}, at / "a.pt"),
        False,
    ),
    "model_state_dict": (lambda at: saved({"model_state_dict": prefixed("module.model.")}, at / "a.pt"), False),
    "ema": (lambda at: saved({"ema": prefixed("_orig_mod."), "model": {}}, at / "a.pt"), True),
    "numbers beside tensors": (lambda at: saved(prefixed("") | {"step": 3, "best": None, 7: 1}, at / "a.pt"), False),
    "ComfyUI": (lambda at: save_file(prefixed("model.diffusion_model."), at / "a.st") or at / "a.st", False),
    "compiled": (lambda at: saved({"generator": prefixed("model._orig_mod.")}, at / "a.pt"), False),
    "safetensors named .pt": (lambda at: shutil.copy(GOLDENS / "backbone_weights.safetensors", at / "a.pt"), False),
    ".pt named safetensors": (lambda at: saved(prefixed(""), at / "a.safetensors"), False),
    "format before 2020 named safetensors": (
        lambda at: saved(prefixed(""), at / "a.safetensors", _use_new_zipfile_serialization=False),
        False,
    ),
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
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 3, 8, 12, generator=draw)
    text = torch.randn(2, PARAMS.text_len, PARAMS.text_dim, generator=draw)
    policy = SlidingWindow(local_attn_size=4)
    cache = KVCache(FrameShape.of(ours.params, 8, 12, batch=2), policy)
    cache.begin(policy.plan(0))
    with torch.inference_mode():
        flow = ours(x.transpose(1, 2), torch.full((2, 1), 700.0), ours.encode_text(text), cache)
        expected = theirs(x, torch.full((2,), 700.0), text).sample
    # diffusers takes sinusoids of angles up to 700 in float32, right to 700 * eps / 2, where ours are float64's;
    # with the same sinusoids the flows differ in no bit here. The layers between pass on less than they are given.
    torch.testing.assert_close(flow.transpose(1, 2), expected, atol=700 * 2**-24, rtol=0)


@pytest.mark.parametrize("said", [None, "{}", '{"model_type": "t2v"}'], ids=["no file", "empty", "without heads"])
def test_a_number_of_heads_that_nothing_tells_is_refused(said, tmp_path):
    if said:
        (tmp_path / "config.json").write_text(said)
    with pytest.raises(UserError, match=r"dim\) of 48, which is no .*config\.json does not say its num_heads"):
        read_generator(GOLDENS / "backbone_weights.safetensors", "mine", tmp_path)


def test_what_a_config_leaves_out_is_read_off_the_shapes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": PARAMS.num_heads, "text_len": PARAMS.text_len}))
    assert read_generator(GOLDENS / "backbone_weights.safetensors", "mine", tmp_path)[0] == PARAMS


@pytest.mark.parametrize(
    "content, words",
    [
        ("[1]", "no JSON object but a list"),
        ('{"dim": 4', "not valid JSON"),
        ('{"dim": "48"}', 'has dim "48", which is no size'),
        ('{"num_heads": null}', "has num_heads null"),
        ('{"num_heads": 0}', "has num_heads 0"),
        ('{"num_heads": 5}', "does not divide into num_heads 5"),
        ('{"num_heads": 4, "eps": NaN}', "has eps NaN"),
        ('{"num_heads": 4, "patch_size": [2, 2]}', "patch_size"),
        ('{"model_type": "i2v"}', "describes a 'i2v' model"),
        ('{"attention_head_dim": 12}', "has num_attention_heads null"),
    ],
)
def test_a_config_that_says_no_sizes_is_refused_in_one_line(content, words, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json") as error:
        read_generator(GOLDENS / "backbone_weights.safetensors", "mine", tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, LatentFormat(16, 8, 4)),
        (WAN_2_2, LatentFormat(48, 16, 4)),
        ({"z_dim": 4, "dim_mult": [1, 2, 2], "temperal_downsample": [True, True], "patch_size": 2}, LatentFormat(4)),
    ],
    ids=["Wan2.1", "Wan2.2", "patches"],
)
def test_the_latents_format_follows_from_the_vaes_layers(config, expected):
    found = latent_format(config)
    assert found == expected
    assert found.shape(480, 832) == (found.channels, 480 // found.spatial, 832 // found.spatial)
    assert found.pixel_frames(21) == 81 and found.latent_frames(81) == 21
    assert found.block_frames(3, first=True) + found.block_frames(3) == found.pixel_frames(6)


def unwritten(params: WanParams, path: Path, prefix: str = "model.", **more: tuple[int, ...]) -> Path:
    """A generator of any size whose tensors all repeat one number, so that its file is small."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in CausalWanModel(**params.to_dict()).state_dict().items()}
    zero = torch.zeros(1, dtype=torch.bfloat16)
    return saved({"generator": {prefix + key: zero.expand(shape) for key, shape in (shapes | more).items()}}, path)


def test_the_published_config_of_wan22_5b_says_its_sizes():
    published = {
        "_class_name": "WanModel", "dim": 3072, "eps": 1e-06, "ffn_dim": 14336, "freq_dim": 256, "in_dim": 48,
        "model_type": "ti2v", "num_heads": 24, "num_layers": 30, "out_dim": 48, "text_len": 512,
    }  # fmt: skip
    assert params_from_dict(published, "config.json") == SIZES["Wan2.2-TI2V-5B"]
    diffusers = {
        "attention_head_dim": 128, "num_attention_heads": 24, "in_channels": 48, "out_channels": 48, "ffn_dim": 14336,
        "num_layers": 30, "image_dim": None, "added_kv_proj_dim": None, "patch_size": [1, 2, 2],
    }  # fmt: skip
    assert params_from_dict(diffusers, "config.json") == SIZES["Wan2.2-TI2V-5B"]


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
    # recorded, values up to 4: as close as test_reference.py holds it
    torch.testing.assert_close(out, tensors["out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", VAE_FORMS)
def test_every_form_of_the_vae_decodes_the_same(form, tmp_path):
    tensors = load_file(GOLDENS / "vae.safetensors")
    out = StreamingDecoder(load_vae(VAE_FORMS[form](tmp_path)))(tensors["latents"])
    # recorded, values up to 1: as close as test_reference.py holds it
    torch.testing.assert_close(out, tensors["decoded"], atol=1e-5, rtol=0)


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
    assert (config.policy().local_attn_size, config.policy().sink_size, config.adapter.rank) == (12, 3, 256)


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
    preflight(config)


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


def broken(value: float) -> dict[str, torch.Tensor]:
    tensors = {key: tensor.clone() for key, tensor in GENERATOR.items()}
    tensors["blocks.1.ffn.0.weight"][0, 0] = value
    return tensors


def scaled_fp8() -> dict[str, torch.Tensor]:
    """As ComfyUI's scaled files: the weight and beside it what to multiply it by."""
    tensors = dict(GENERATOR)
    scale = tensors["blocks.0.ffn.0.weight"].abs().max() / 448
    tensors["blocks.0.ffn.0.weight"] = (tensors["blocks.0.ffn.0.weight"] / scale).to(torch.float8_e4m3fn)
    return tensors | {"blocks.0.ffn.0.scale_weight": scale}


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
    "scaled FP8": (lambda at: saved(scaled_fp8(), at / "a.pt"), ["scaled FP8", "bfloat16 or float16"]),
    "integers": (
        lambda at: saved({key: value.to(torch.int8) for key, value in GENERATOR.items()}, at / "a.pt"),
        ["as int8", "made smaller", "bfloat16"],
    ),
    "nothing": (lambda at: saved({"generator": None}, at / "a.pt"), ["holds no tensors but generator"]),
    "numbers": (lambda at: saved({1: 2}, at / "a.pt"), ["holds no tensors but 1"]),
    "a name twice": (
        lambda at: saved(prefixed("") | {"model.head.modulation": torch.zeros(1)}, at / "a.pt"),
        ["holds head.modulation twice"],
    ),
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused_by_name(value, dtype, family, tmp_path):
    path = saved(broken(value), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"blocks\.1\.ffn\.0\.weight holds NaN or infinity"):
        load_generator(path, "golden", family, dtype=dtype)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A file cut short, or with some bits of it the other way round, mostly where its names are."""
    if draw.random() < 0.25:
        return data[: draw.randrange(len(data))]
    changed = bytearray(data)
    reach = draw.choice([6000, len(data)])
    for _ in range(draw.choice([1, 3, 30])):
        place = draw.randrange(reach)
        changed[draw.choice([place, -1 - place])] ^= 1 << draw.randrange(8)
    return bytes(changed)


DAMAGED_FORMS = ["generator", "format before 2020", "safetensors"]


@pytest.mark.parametrize("form", DAMAGED_FORMS)
@pytest.mark.filterwarnings("ignore")  # PyTorch's, about what it finds in a damaged pickle
def test_a_damaged_file_loads_or_is_refused_in_one_line(form, family, tmp_path):
    data = FORMS[form][0](tmp_path).read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(40):
        path = tmp_path / draw.choice(["damaged.pt", "damaged.safetensors"])
        path.write_bytes(damaged(data, draw))
        try:
            read_generator(path, "golden", family)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= 10


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
