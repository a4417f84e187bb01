"""LoRAs in every common program's names change the weights as they say; what does not fit is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.frames import FrameShape
from pipeline.kv_cache import KVCache
from pipeline.policies import SlidingWindow
from tests.close import assert_close, assert_differs
from tests.miniature import ROUNDINGS
from utils.errors import UserError
from wan.checkpoint import load_generator
from wan.lora import add_loras, linear_layers
from wan.model import CausalWanModel
from wan.params import params_from_dict

GOLDENS = Path(__file__).parent / "goldens"
PARAMS = params_from_dict(json.loads((GOLDENS / "rollout_native.json").read_text())["config"]["backbone"], "golden")
WEIGHTS = load_file(GOLDENS / "backbone_weights.safetensors")
PEFT = torch.load(GOLDENS / "ckpt_lora_raw.pt", weights_only=True)  # rank 4, of every linear layer of the blocks
RANK, ALPHA = 4, 6.0
DIFFUSERS = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0", "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    (folder / "config.json").write_text(json.dumps(PARAMS.to_dict()))
    return folder


def halves() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> down and up."""
    layers = {}
    for key, down in PEFT.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight")
            layers[layer.removeprefix("base_model.model.")] = (down, PEFT[f"{layer}.lora_B.weight"])
    return layers


def named(
    rename: Callable[[str], str], down: str = "lora_A", up: str = "lora_B", alpha: float | None = None
) -> dict[str, torch.Tensor]:
    tensors = {}
    for layer, (a, b) in halves().items():
        tensors[f"{rename(layer)}.{down}.weight"] = a.clone()
        tensors[f"{rename(layer)}.{up}.weight"] = b.clone()
        if alpha is not None:
            tensors[f"{rename(layer)}.alpha"] = torch.tensor(alpha)
    return tensors


def diffusers(layer: str) -> str:
    blocks, index, rest = layer.split(".", 2)
    return f"{blocks}.{index}.{DIFFUSERS[rest]}"


def flat(layer: str) -> str:
    return layer.replace(".", "_")


FORMS: dict[str, dict] = {
    "published": torch.load(GOLDENS / "ckpt_lora.pt", weights_only=True),
    "peft": PEFT,
    "bare": named(lambda layer: layer),
    "live adapter": {key.replace(".weight", ".default.weight"): value for key, value in PEFT.items()},
    "ComfyUI": named(lambda layer: f"diffusion_model.{layer}", "lora_down", "lora_up"),
    "ComfyUI with alpha": named(lambda layer: f"diffusion_model.{layer}", alpha=ALPHA),
    "kohya": named(lambda layer: f"lora_unet_{flat(layer)}", "lora_down", "lora_up", ALPHA),
    "kohya over diffusers": named(lambda x: f"lora_transformer_{flat(diffusers(x))}", "lora_down", "lora_up", ALPHA),
    "diffusers": named(lambda layer: f"transformer.{diffusers(layer)}"),
    "early diffusers": named(lambda layer: f"transformer.{diffusers(layer)}", "lora.down", "lora.up"),
    "state_dict": {"state_dict": PEFT, "step": 3},
}  # fmt: skip


def write(content: dict, path: Path) -> Path:
    torch.save(content, path)
    return path


def model(family: Path) -> CausalWanModel:
    return load_generator(GOLDENS / "backbone_weights.safetensors", "golden", family)


def expected(layers: dict[str, tuple[torch.Tensor, torch.Tensor, float]]) -> dict[str, torch.Tensor]:
    """The weights with scale * up @ down added, written down on its own."""
    weights = dict(WEIGHTS)
    for layer, (down, up, scale) in layers.items():
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * up.float() @ down.float()
    return weights


def assert_weights(found: CausalWanModel, wanted: dict[str, torch.Tensor]) -> None:
    for key, value in found.state_dict().items():
        # Sums of up to 8 products, scaled, and one to three additions. Both sides of an addition may be twice as
        # large as what comes out, which four times the roundings stand for.
        assert_close(value, wanted[key], roundings=4 * 6)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_adds_what_it_says(form, family, tmp_path):
    tuned = model(family)
    add_loras(tuned, [(write(FORMS[form], tmp_path / "a.pt"), 1.0)], RANK, ALPHA)
    layers = {layer: (down, up, ALPHA / RANK) for layer, (down, up) in halves().items()}
    assert len(layers) == 10 * PARAMS.num_layers
    assert_weights(tuned, expected(layers))


def test_a_files_own_alpha_and_rank_need_no_settings(family, tmp_path):
    save_file(FORMS["kohya"], tmp_path / "kohya.safetensors")
    tuned, other = model(family), model(family)
    add_loras(tuned, [(tmp_path / "kohya.safetensors", 1.0)], 256, 256)
    add_loras(other, [(GOLDENS / "ckpt_lora.pt", ALPHA / RANK)])  # without any alpha, the strength alone
    assert_weights(other, tuned.state_dict())


def flow(tuned: CausalWanModel) -> torch.Tensor:
    policy = SlidingWindow(local_attn_size=4)
    cache = KVCache(FrameShape.of(tuned.params, 4, 4), policy)
    cache.begin(policy.plan(0))
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        text = tuned.encode_text(torch.randn(1, PARAMS.text_len, PARAMS.text_dim, generator=draw))
        return tuned(torch.randn(1, 3, 16, 4, 4, generator=draw), torch.full((1, 1), 500.0), text, cache)


def some_layers_of_mixed_ranks() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    tensors = {}
    for layer, (down, up) in halves().items():
        if layer.startswith("blocks.0."):
            rank = 8 if "ffn" in layer else 4
            tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, down.shape[1], generator=draw) * 0.1
            tensors[f"{layer}.lora_B.weight"] = torch.randn(up.shape[0], rank, generator=draw) * 0.1
    return tensors


def test_several_at_once_of_some_layers_and_mixed_ranks_add_up_merged_or_beside(family, tmp_path):
    mixed = some_layers_of_mixed_ranks()
    files = [
        (write(FORMS["kohya"], tmp_path / "kohya.pt"), 0.5),
        (write(mixed, tmp_path / "mixed.pt"), -0.8),
    ]
    merged, beside = model(family), model(family)
    add_loras(merged, files, RANK, ALPHA)
    layers = {layer: (down, up, 0.5 * ALPHA / RANK) for layer, (down, up) in halves().items()}
    wanted = expected(layers)
    for key, down in mixed.items():
        if key.endswith("lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight")
            change = -0.8 * ALPHA / len(down) * mixed[f"{layer}.lora_B.weight"] @ down
            wanted[f"{layer}.weight"] = wanted[f"{layer}.weight"] + change
    assert_weights(merged, wanted)
    add_loras(beside, files, RANK, ALPHA, merge=False)
    plain, whole = flow(model(family)), flow(merged)
    assert_differs(whole, plain, ROUNDINGS)
    # The sums are taken in another order through all layers.
    assert_close(flow(beside), whole, ROUNDINGS)


def test_of_no_layer_nothing_changes(family):
    tuned = model(family)
    add_loras(tuned, [])
    assert_weights(tuned, WEIGHTS)


def changed(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    content = FORMS["bare"] | {key.replace("__", "."): value for key, value in tensors.items()}
    return {key: value for key, value in content.items() if value is not None}


Q = "blocks__0__self_attn__q__lora_"
NAN = torch.full((RANK, PARAMS.dim), float("nan"))
KOHYA_ALPHA = "lora_unet_blocks_0_ffn_0.alpha"
# Name -> (content, words of the one line)
PROBLEMS = {
    "a generator": (WEIGHTS, ["no LoRA weights", "generator_ckpt"]),
    "NaN": (changed(**{f"{Q}A__weight": NAN}), ["(down)", "blocks.0.self_attn.q holds NaN"]),
    "infinite alpha": (FORMS["kohya"] | {KOHYA_ALPHA: torch.tensor(float("inf"))}, ["(alpha)", "ffn.0 holds"]),
    "half a layer": (changed(**{f"{Q}B__weight": None}), ["half of blocks.0.self_attn.q"]),
    "another size": (changed(**{f"{Q}A__weight": torch.zeros(RANK, 7)}), ["where the model has [48, 48]"]),
    "other ranks in one layer": (changed(**{f"{Q}A__weight": torch.zeros(3, PARAMS.dim)}), ["self_attn.q has"]),
    "another model": (named(lambda layer: f"blocks.9.{layer}"), ["no such linear layer", "another model"]),
    "kohya of another model": (named(lambda x: f"lora_unet_down_{flat(x)}", "lora_down", "lora_up"), ["foreign"]),
    "DoRA": (changed(blocks__0__self_attn__q__dora_scale=torch.ones(1)), ["dora_scale", "no part of a plain LoRA"]),
    "integers": ({key: x.to(torch.int8) for key, x in PEFT.items()}, ["in whole numbers"]),
    "two alphas": (FORMS["kohya"] | {KOHYA_ALPHA: torch.ones(2)}, ["has 2 numbers as blocks.0.ffn.0"]),
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_file_that_cannot_serve_is_named_with_its_cause(problem, family, tmp_path):
    content, words = PROBLEMS[problem]
    with pytest.raises(UserError) as error:
        add_loras(model(family), [(write(content, tmp_path / "a.pt"), 1.0)], RANK, ALPHA)
    message = str(error.value)
    assert "\n" not in message and "lora_ckpt" in message and all(word in message for word in words), message


def test_a_lora_of_another_rank_offers_the_rank_found(family):
    with pytest.raises(UserError, match=r"rank 4 where adapter\.rank is 256; set adapter\.rank: 4"):
        add_loras(model(family), [(GOLDENS / "ckpt_lora.pt", 1.0)], 256, 256)


def test_layers_outside_the_blocks_can_have_one_too(family, tmp_path):
    tuned = model(family)
    outputs, inputs = linear_layers(tuned)["head.head"]
    down, up = torch.randn(2, inputs), torch.randn(outputs, 2)
    path = write({"head.head.lora_A.weight": down, "head.head.lora_B.weight": up}, tmp_path / "a.pt")
    add_loras(tuned, [(path, 1.0)])
    assert_weights(tuned, expected({"head.head": (down, up, 1.0)}))
