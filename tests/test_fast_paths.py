"""Faster forms of a layer's parts give what the plain ones give."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F

from pipeline.build import assemble
from pipeline.config import load_config
from pipeline.noise import NoiseAhead, SeededNoise
from pipeline.offload import offload_transformer
from tests.miniature import PARAMS, randomised
from wan.fp8 import Fp8Linear, multiply_in_fp8
from wan.linear import Linear, linear, linear_gelu
from wan.model import CausalWanModel, shortened
from wan.norms import modulated
from wan.params import LatentFormat
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


@pytest.mark.parametrize("lengths, tokens", [([5, 100], 128), ([0, 0], 64), ([127, 3], 128), ([128, 3], 192)])
def test_one_zero_of_a_text_counts_for_those_left_out(lengths, tokens):
    model = randomised(CausalWanModel(**PARAMS.to_dict())).eval().requires_grad_(False)
    attention, x = model.blocks[0].cross_attn, torch.randn(2, 9, PARAMS.dim)
    text = torch.randn(2, 512, PARAMS.text_dim)
    for row, length in zip(text, lengths, strict=True):
        row[length:] = 0
    short, bias = shortened(text)
    assert torch.equal(text[:, :tokens], short) and bias.shape == (1, 1, 1, tokens)
    whole = attention(x, *attention.project_text(model.text_embedding(text)))
    # the sums of 512 weights that attention divides by, and of as many weighted values, in another order
    assert (attention(x, *model.encode_text(text)[0]) - whole).abs().max() <= 2 * 512 * EPS * whole.abs().max()


def test_a_text_without_zeros_to_spare_is_whole():
    text = torch.randn(1, 512, PARAMS.text_dim)
    text[:, 449:] = 0
    found, bias = shortened(text)
    assert found is text and bias is None


def test_rotation_is_the_formula():
    table, x = rope_table([0, 7, 300], 3, 5, 64), torch.randn(2, 45, 2, 64)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.real, table.imag
    expected = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    # two products and a sum; a machine may round them once instead of three times
    assert (rotate(x, table) - expected).abs().max() <= 2 * EPS * x.abs().max()


@pytest.mark.parametrize("bias", [torch.randn(70), None])
def test_a_linear_is_its_formula_without_gradients_as_with_them(bias):
    x, weight = torch.randn(9, 2, 150).transpose(0, 1), torch.randn(70, 150)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    bound = 150 * EPS * (x.abs() @ weight.abs().T + 5)  # a sum of 150 products, in any order
    with torch.no_grad():
        assert ((linear(x, weight, bias) - exact).abs() <= bound).all()
    assert ((linear(x, weight, bias) - exact).abs() <= bound).all()


@pytest.mark.parametrize("with_gradients", [False, True])
def test_gelu_computed_with_its_linear_is_its_tanh_form(with_gradients):
    x, weight = torch.linspace(-12, 12, 10001).unsqueeze(1), torch.tensor([[1.0], [-0.5]])
    bias = torch.tensor([0.0, 0.25])
    with torch.set_grad_enabled(with_gradients):
        found = linear_gelu(x, weight, bias)
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    # a kernel's own polynomials for tanh; far to the left the result is the small difference of 1 and of one of them
    assert ((found - exact).abs() <= 16 * EPS * (1 + exact.abs())).all()


def test_a_norm_with_scale_and_shift_of_its_own_is_a_norm_then_scaled_and_shifted():
    norm = torch.nn.LayerNorm(48, elementwise_affine=False)
    x, scale, shift = torch.randn(1, 6, 48), torch.randn(1, 1, 1, 48), torch.randn(1, 1, 1, 48)
    expected = norm(x) * (1 + scale[0, 0]) + shift[0, 0]
    frames = modulated(x, norm.eps, shift.expand(1, 2, 1, 48), scale.expand(1, 2, 1, 48))
    for found in (modulated(x, norm.eps, shift, scale), frames):
        assert (found - expected).abs().max() <= 8 * EPS * expected.abs().max()


def test_noise_drawn_ahead_is_the_noise(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    source, shape = SeededNoise(3, [(0, 0), (1, 2)]), (2, 3, 4, 2, 2)
    ahead = NoiseAhead(source, torch.device("cpu"))
    for block in range(4):
        for step in range(3):
            assert torch.equal(ahead.draw(block, step, shape), source.draw(block, step, shape))
            assert block == 0 or step or len(ahead.drawn) >= 2


def test_products_in_fp8_are_those_of_numbers_rounded_to_it():
    layer, x = Linear(64, 32), torch.randn(2, 5, 64) * torch.tensor([1e-3, 1e3]).view(2, 1, 1)
    exact = layer(x)
    found = Fp8Linear(layer)(x)
    # three bits behind the first: a number is off by 2^-4 of itself at most, or by 2^-10 where it is below 2^-6, of the
    # row's scale, which is a 448th of its largest; and so each product of two
    sizes = x.abs() @ layer.weight.abs().T
    small = x.abs().amax(-1, keepdim=True) * layer.weight.abs().sum(1) + x.abs().sum(-1, keepdim=True)
    bound = (2 * 2**-4 + 2**-8) * sizes + 2**-10 / 448 * 2 * small
    assert ((found - exact).abs() <= bound).all()
    assert (found - exact).abs().max() > 0
    blocks = torch.nn.ModuleDict({"a": layer, "b": Linear(20, 20)})
    multiply_in_fp8(blocks)
    assert type(blocks["a"]) is Fp8Linear and type(blocks["b"]) is Linear


WINDOW = {"local_attn_size": 8, "sink_size": 1}


def generated(model: CausalWanModel, blocks: int = 6) -> torch.Tensor:
    kwargs = {"use_latentmem": True, "compression_method": "avg_pool", "memory_size": 2, "recent_exclude": 0}
    settings = {"generator_ckpt": "none", "num_output_frames": 3 * blocks, "denoising_step_list": [1000, 500]}
    config = load_config(overrides={**settings, "height": 32, "width": 48, "model_kwargs": WINDOW | kwargs})
    pipeline = assemble(config, model, LatentFormat(), torch.device("cpu"))
    text = torch.randn(1, PARAMS.text_len, PARAMS.text_dim, generator=torch.Generator().manual_seed(0))
    generation = pipeline.start_from(text, SeededNoise(0, [(0, 0)]))
    return torch.cat([generation.step().latents for _ in range(blocks)], dim=1)


@pytest.mark.parametrize("offloaded", [False, True])
def test_one_graph_without_a_break_serves_all_layers_and_contexts(offloaded):
    torch._dynamo.reset()
    model = randomised(CausalWanModel(**PARAMS.to_dict())).eval().requires_grad_(False)
    model.fuse_projections()
    plain = generated(model)
    counters.clear()
    model.compile_blocks(backend="eager", fullgraph=True)
    if offloaded:
        offload_transformer(model, torch.device("cpu"))
    # what is compiled has other kernels for its products; a rollout's errors of rounding add up to some 4e-7 of it
    assert (generated(model) - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert counters["stats"]["unique_graphs"] == 2  # and of the last layer's part in what only leaves keys and values
    assert not counters["graph_break"]


def test_a_commit_that_ends_early_leaves_what_a_whole_forward_leaves():
    model = randomised(CausalWanModel(**PARAMS.to_dict())).eval().requires_grad_(False)
    early = generated(model)
    model.leave = lambda *inputs: model(*inputs)
    assert torch.equal(generated(model), early)
