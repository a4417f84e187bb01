"""Faster forms of a layer's parts give what the plain ones give."""

import torch
from torch.nn import functional as F

from pipeline.noise import NoiseAhead, SeededNoise
from tests.miniature import PARAMS, randomised
from wan.model import CausalWanModel, TanhGELU, modulated
from wan.rope import rope_table, rotate

EPS = torch.finfo(torch.float32).eps


def test_one_product_of_q_k_and_v_is_three_products():
    model = randomised(CausalWanModel(**PARAMS.to_dict())).eval().requires_grad_(False)
    attention, x = model.blocks[0].self_attn, torch.randn(2, 9, PARAMS.dim)
    names = list(model.state_dict())
    apart = attention.project(x)
    model.fuse_projections()
    assert list(model.state_dict()) == names
    for ours, theirs in zip(attention.project(x), apart, strict=True):
        # sums of 48 products, perhaps in another order
        assert (ours - theirs).abs().max() <= 48 * EPS * theirs.abs().max()
    model.double()
    assert attention.project(x.double())[0].dtype == torch.float64, "the fused weights follow the model"


def test_rotation_is_the_formula():
    table, x = rope_table([0, 7, 300], 3, 5, 64), torch.randn(2, 45, 2, 64)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.real, table.imag
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    # two products and a sum; a machine may round them once instead of three times
    assert (rotate(x, table) - expected).abs().max() <= 2 * EPS * x.abs().max()


def test_gelu_by_a_sigmoid_is_its_tanh_form():
    x = torch.linspace(-12, 12, 10001)
    with torch.no_grad():
        fast = TanhGELU()(x)
    exact = F.gelu(x.double(), approximate="tanh")
    # rounding of the cubic in the exponent, at most 2 |u| eps of the result, and some four operations
    assert ((fast - exact).abs() <= 64 * EPS * (exact.abs() + EPS)).all()


def test_a_norm_with_scale_and_shift_of_its_own_is_a_norm_then_scaled_and_shifted():
    norm = torch.nn.LayerNorm(48, elementwise_affine=False)
    x, scale, shift = torch.randn(1, 6, 48), torch.randn(1, 1, 1, 48), torch.randn(1, 1, 1, 48)
    expected = norm(x) * (1 + scale[0, 0]) + shift[0, 0]
    frames = modulated(norm, x, shift.expand(1, 2, 1, 48), scale.expand(1, 2, 1, 48))
    for found in (modulated(norm, x, shift, scale), frames):
        assert (found - expected).abs().max() <= 8 * EPS * expected.abs().max()


def test_noise_drawn_ahead_is_the_noise(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    source, shape = SeededNoise(3, [(0, 0), (1, 2)]), (2, 3, 4, 2, 2)
    ahead = NoiseAhead(source, torch.device("cpu"))
    for block in range(4):
        for step in range(3):
            assert torch.equal(ahead.draw(block, step, shape), source.draw(block, step, shape))
            assert block == 0 or step or len(ahead.drawn) >= 2
