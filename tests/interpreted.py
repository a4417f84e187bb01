"""The Triton kernels against the plain way: on a GPU, or in Triton's interpreter on the CPU.

python -m tests.interpreted
TRITON_INTERPRET=1 python -m tests.interpreted

Triton comes with PyTorch's build for GPUs; beside a CPU build, which the tests use, it is a package of its own.
"""

from unittest import mock

import torch
from torch.nn import functional as F

from benchmarks.random_models import make_vae
from pipeline.decode import start_decoder
from tests.close import assert_close
from utils.errors import run
from wan import kernels, norms, vae_decoder
from wan.rope import rope_table, rotate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# a sum of 48 to 200 squares (6 to 25 roundings) and some ten operations; bfloat16 is rounded at the end, a sum before
ROUNDINGS = {torch.float32: 40, torch.bfloat16: 2}


def main() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        rotation(dtype)
        for size in (48, 200):
            sums_and_norms(size, dtype)
            roots(size, dtype)
            biases(size, dtype)
        decoding(dtype)
    print("equal")


def rotation(dtype: torch.dtype) -> None:
    tokens, heads, head_dim = 45, 2, 16
    qkv = torch.randn(2, tokens, 3 * heads, head_dim).to(DEVICE, dtype)  # as one product of all gives them
    q, k, v = qkv.chunk(3, dim=2)
    table = rope_table([0, 7, 300], 3, 5, head_dim, DEVICE)
    context = torch.zeros(2, 2, heads, tokens + 9, head_dim, device=DEVICE, dtype=dtype)
    keys, values = context[:, :, :, 4 : 4 + tokens].transpose(2, 3)
    rotated = kernels.rotate_write(q, k, v, table, keys, values)
    assert_close(rotated, rotate(q, table), ROUNDINGS[dtype])
    assert_close(keys, rotate(k, table), ROUNDINGS[dtype])
    assert torch.equal(values, v)
    assert not context[:, :, :, :4].any() and not context[:, :, :, 4 + tokens :].any()
    context.zero_()
    kernels.rotate_write(None, k, v, table, keys, values)
    assert_close(keys, rotate(k, table), ROUNDINGS[dtype])
    assert torch.equal(values, v)


def sums_and_norms(size: int, dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 2, 6, size).to(DEVICE, dtype)
    weight, bias = torch.randn(2, size).to(DEVICE, dtype)
    for frames in (1, 3):
        gate, shift, scale = torch.randn(3, 2, frames, 1, size).to(DEVICE, dtype)
        for way in ((gate, None, None), (None, shift, scale), (gate, shift, scale)):
            layer = norms.AddNorm(size).to(DEVICE, dtype)
            layer.weight.data, layer.bias.data = weight, bias
            plain = layer(x, y, *way)  # with gradients, which the kernel has not
            total, out = torch.empty_like(x), torch.empty_like(x)
            by, plus = (weight, bias) if way[1] is None else (1 + scale, shift)
            norms.norm_rows(x, out, by, layer.eps, plus, y, way[0], total)
            assert_close(total, plain[0], ROUNDINGS[dtype])
            assert_close(out, plain[1], ROUNDINGS[dtype] * (4 if frames > 1 else 1))  # the plain way rounds between


def roots(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, size).to(DEVICE, dtype)
    weight = torch.randn(size).to(DEVICE, dtype)
    part = x[:, :, 1]  # rows that lie apart
    out = torch.empty_like(part, memory_format=torch.contiguous_format)
    norms.norm_rows(part, out, weight, 1e-6)
    assert_close(out, F.rms_norm(part, weight.shape, weight, 1e-6), ROUNDINGS[dtype])
    room = torch.zeros(2, 7, 3, size, device=DEVICE, dtype=dtype)
    norms.norm_rows(x, room[:, 2:], weight, 1e-6, silu=True)
    assert_close(room[:, 2:], F.silu(F.rms_norm(x, weight.shape, weight, 1e-6)), 2 * ROUNDINGS[dtype])
    assert not room[:, :2].any()


def biases(size: int, dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 2, 5, 3, size).to(DEVICE, dtype)
    weight, plus = torch.randn(2, size).to(DEVICE, dtype)
    out = torch.empty_like(x)
    norms.norm_rows(x, out, weight, 1e-6, silu=True, plus=plus)
    added = x.float() + plus.float()  # the kernel does not round it
    plain = F.silu(F.rms_norm(added, weight.shape, weight.float(), 1e-6))
    assert_close(out, plain.to(dtype), 2 * ROUNDINGS[dtype])
    total = y.float() + added
    norms.add_rows(y, x, plus)
    assert_close(y, total.to(dtype), ROUNDINGS[dtype])


def decoding(dtype: torch.dtype) -> None:
    """The video decoder by the kernels against itself by the plain way."""
    vae = make_vae("full", "tinyworld", DEVICE, dtype)
    latents = torch.randn(1, 3, 16, 2, 3, device=DEVICE)
    found = {}
    for fast in (False, True):
        with (
            mock.patch.object(norms, "is_fast", return_value=fast),
            mock.patch.object(vae_decoder, "is_fast", return_value=fast),
        ):
            decode = start_decoder(vae)
            found[fast] = torch.cat([decode(latents), decode(latents)], dim=1)
    # some 40 layers one after another, each with a sum of 27 x 24 products or more
    assert_close(found[True], found[False], 40 * ROUNDINGS[dtype])


if __name__ == "__main__":
    run(main)
