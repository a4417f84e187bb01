"""The benchmarks measure what they say: figures are complete, and the count of operations is the counted one."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fake_gpu import FakeGPU
from benchmarks.fake_gpu.engine import make_model
from benchmarks.flops import forward_flops, linear_flops
from benchmarks.rollout import Rollout
from benchmarks.run import BenchmarkConfig, measure, table
from benchmarks.timing import TURN, Turns
from pipeline.frames import FrameShape
from pipeline.plain import PlainCache
from pipeline.policies import SlidingWindow
from tests.miniature import PARAMS
from wan.model import CausalWanModel


def test_both_methods_and_their_plain_ways_are_measured():
    result = measure(BenchmarkConfig(height=32, width=32, blocks=2, steps=1))
    assert list(result["methods"]) == ["native", "latentmem", "native, plain", "latentmem, plain"]
    for figures in result["methods"].values():
        assert figures["block_s"] > 0 and 0 < figures["of_matmul_rate"] < 1
    for stage in result["methods"]["latentmem"]["stages"].values():
        assert stage["s"] > 0
    assert result["methods"]["native"]["stages"]["assemble the context"]["moved_mb"] > 0
    assert "fetch" in result["methods"]["latentmem"]["stages"]
    assert result["end_to_end"]["first_frame_s"] > 0 and result["end_to_end"]["frames_per_s"] > 0
    assert all(name in table(result) for name in result["methods"])


def test_nothing_is_waited_for_within_a_turn_on_a_gpu():
    with FakeGPU().installed() as gpu:
        model = make_model(1, gpu.device)
        config = BenchmarkConfig(size="1.3b", height=480, width=832, blocks=2, steps=1, cuda_graphs=False)
        rollout = Rollout("native", TURN, config, model, gpu.device, torch.bfloat16)
        gpu.take()
        seconds = Turns(2, gpu.device).take({"native": rollout})
        assert len(seconds["native"]) == TURN - 1
        assert list(gpu.take().waits.values()) == [1]  # for the last of the events


def test_counted_operations_equal_the_formula(monkeypatch):
    monkeypatch.setattr("wan.linear.ONEDNN", None)  # whose products PyTorch does not count
    model = CausalWanModel(**PARAMS.to_dict()).eval()
    cache = PlainCache(FrameShape.of(PARAMS, 8, 12))
    policy = SlidingWindow()
    text = model.encode_text(torch.zeros(1, PARAMS.text_len, PARAMS.text_dim))
    x, t = torch.zeros(1, 3, 16, 8, 12), torch.zeros(1, 1)
    with torch.no_grad():
        for start in range(0, 12, 3):
            cache.begin(policy.plan(start))
            with FlopCounterMode(display=False) as counter:
                model(x, t, text, cache)
    counts = counter.get_flop_counts()
    blocks = [sum(counts[name].values()) for name in counts if name.rpartition(".")[0] == "CausalWanModel.blocks"]
    assert len(blocks) == PARAMS.num_layers
    assert blocks == [linear_flops(PARAMS, 3 * 24)] * PARAMS.num_layers  # the counter passes over attention on a CPU
    with torch.no_grad(), FlopCounterMode(display=False) as leaving:
        model.leave(x, t, text, cache)
    spared = forward_flops(PARAMS, 72, 0) - forward_flops(PARAMS, 72, 0, leaves=True)
    attention = 4 * 72 * PARAMS.text_len * PARAMS.dim
    head = 2 * 72 * PARAMS.dim * PARAMS.out_dim * 4
    assert counter.get_total_flops() - leaving.get_total_flops() == spared - attention + head
