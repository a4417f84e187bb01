"""The retrieval autoencoder against recorded numbers, and its checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ae.losses import chunk_losses
from ae.model import LatentAE, LatentAEParams, load_encoder
from utils.errors import UserError

GOLDENS = Path(__file__).parent / "goldens"
VARIANTS = {
    "margin0": {"delta_margin": 0.0},
    "window1": {"delta_window": 1},
    "window20": {"delta_window": 20},
    "nodelta": {"delta_weight": 0.0},
    "nosmooth": {"smooth_weight": 0.0},
    "w2": {"delta_weight": 2.0, "smooth_weight": 0.5},
}


def params(config: dict) -> LatentAEParams:
    sizes = {key: config[key] for key in ("in_channels", "spatial_h", "spatial_w", "latent_dim")}
    return LatentAEParams(**sizes, hidden_dims=tuple(config["hidden_dims"]))


@pytest.fixture(params=["ae", "ae_odd15x13"])
def golden(request):
    """(model with the recorded weights, recorded tensors, recorded facts)."""
    tensors = load_file(GOLDENS / f"{request.param}.safetensors")
    facts = json.loads((GOLDENS / f"{request.param}.json").read_text())
    model = LatentAE(params(facts["config"]))
    model.load_state_dict({key[2:]: value for key, value in tensors.items() if key.startswith("w.")})
    return model, tensors, facts


def close(actual, expected):
    """Equal up to float32's rounding in another order of summation, in parts of the largest value.

    A value passes 10 to 15 convolutions and norms, each a sum of up to 9 x 32 products or over a whole map. Other
    processors' kernels (default, AVX2, AVX-512; one thread or two; SSE4.1) differ by up to 9e-6; five times that is
    allowed, and a wrong weight, term or order changes far more.
    """
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-5 * expected.abs().max().item())


def test_published_sizes_have_the_published_key_names():
    with torch.device("meta"):
        keys = [[key, list(value.shape)] for key, value in LatentAE(LatentAEParams()).state_dict().items()]
    assert keys == json.loads((GOLDENS / "latent_ae_keys.json").read_text())


def test_forward_equals_the_recording(golden):
    model, tensors, facts = golden
    recon, z = model(tensors["chunk"])
    close(recon.flatten(0, 1)[:8], tensors["recon"])
    close(z.flatten(0, 1), tensors["embed"])
    close(model.encode(tensors["chunk"]).flatten(0, 1), tensors["encode_normalized"])
    assert list(model.params.feature_shape) == facts["feat_shape"]


def test_losses_and_gradients_equal_the_recording(golden):
    model, tensors, facts = golden
    recon, z = model(tensors["chunk"])
    losses = chunk_losses(tensors["chunk"], recon, z)
    for name, value in losses._asdict().items():
        close(value, tensors[f"loss_{name}"])
    for name, expected in facts["loss_variants_total_recon_delta_smooth"].items():
        close(torch.stack(chunk_losses(tensors["chunk"], recon, z, **VARIANTS[name])), expected)
    losses.total.backward()
    for name, parameter in model.named_parameters():
        if f"grad.{name}" in tensors:
            close(parameter.grad, tensors[f"grad.{name}"])
    close(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]), tensors["grad_norm"])


def test_short_chunks_have_no_temporal_loss():
    x, z = torch.randn(2, 1, 16, 4, 4), torch.randn(2, 1, 8)
    losses = chunk_losses(x, x, z)
    assert [value.item() for value in losses] == [0, 0, 0, 0]


def test_a_new_residual_block_passes_its_input_through():
    x = torch.randn(1, 16, 8, 12)
    model = LatentAE(LatentAEParams(spatial_h=8, spatial_w=12, latent_dim=8, hidden_dims=(16,)))
    block = model.encoder.conv_stack[3]
    assert torch.equal(block(x), x)


def test_published_checkpoint_loads_frozen_in_float32():
    encoder = load_encoder(GOLDENS / "ae_ckpt.pt", latent_shape=(16, 8, 12))
    weights = torch.load(GOLDENS / "ae_ckpt.pt", weights_only=True)["model"]
    assert all(torch.equal(value, weights[key]) for key, value in encoder.state_dict().items())
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    z = encoder.encode(torch.randn(2, 3, 16, 8, 12))
    assert z.shape == (2, 3, 32)
    close(z.norm(dim=-1), torch.ones(2, 3))


def test_safetensors_and_bare_weights_load_to_the_same_encoder(tmp_path):
    content = torch.load(GOLDENS / "ae_ckpt_init.pt", weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "bare.pt")
    save_file(content["model"], tmp_path / "ae.safetensors", {"config": json.dumps(content["config"])})
    x = torch.randn(1, 16, 8, 12)
    expected = load_encoder(GOLDENS / "ae_ckpt_init.pt").encode(x)
    assert torch.equal(load_encoder(tmp_path / "bare.pt", latent_shape=(8, 12)).encode(x), expected)
    assert torch.equal(load_encoder(tmp_path / "ae.safetensors").encode(x), expected)


def _without_a_weight(content: dict) -> dict:
    del content["model"]["encoder.fc.bias"]
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"generator": c["model"]}, "'model' is needed"),
        (_without_a_weight, "encoder.fc.bias"),
        (lambda c: c | {"config": c["config"] | {"latent_dim": 64}}, "where the model has"),
        (lambda c: c | {"config": {"lr": 1}}, "lacks a usable value"),
        (lambda c: {"model": c["model"]}, "height and width must be given"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(change, message, tmp_path):
    torch.save(change(torch.load(GOLDENS / "ae_ckpt.pt", weights_only=True)), tmp_path / "ae.pt")
    with pytest.raises(UserError, match=message) as error:
        load_encoder(tmp_path / "ae.pt")
    assert "\n" not in str(error.value)


def test_a_missing_or_truncated_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "cut.pt").write_bytes((GOLDENS / "ae_ckpt.pt").read_bytes()[:5000])
    for name in ("cut.pt", "none.pt"):
        with pytest.raises(UserError, match=name) as error:
            load_encoder(tmp_path / name)
        assert "\n" not in str(error.value)


def test_latents_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(UserError, match=r"8 x 12.*15 x 13"):
        load_encoder(GOLDENS / "ae_ckpt.pt", latent_shape=(15, 13))
    with pytest.raises(UserError, match=r"16 x 8 x 12.*48 x 8 x 12"):
        load_encoder(GOLDENS / "ae_ckpt.pt", latent_shape=(48, 8, 12))
