"""Properties of generation: memory matters, batches and noise do not interfere, fast and plain paths agree."""

import os
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from benchmarks.plain import PlainCache
from pipeline import outputs
from pipeline.config import load_config
from pipeline.context import POLICIES, ContextPlan, Layout, SlidingWindow
from pipeline.decode import to_uint8
from pipeline.kv_cache import KVCache
from pipeline.memory import TieredMemory
from pipeline.noise import SeededNoise
from pipeline.pipeline import Pipeline, Sample, load
from pipeline.retrieval import DESCRIPTORS, SELECTIONS, Retrieval
from tests import miniature
from tests.miniature import latentmem, make_family
from wan.model import CausalWanModel
from wan.vae import StreamingDecoder

PROMPTS = ["a red house", "a blue tree at night", "a red tree"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def settings(root):
    return make_family(root)


def latents(pipeline: Pipeline, *samples: Sample) -> torch.Tensor:
    return torch.cat([block.latents for block in pipeline.blocks(samples)], dim=1)


def with_memory(root, settings, method="avg_pool", **kwargs) -> Pipeline:
    return load(load_config(overrides=settings | {"model_kwargs": latentmem(root, method) | kwargs}))


@pytest.mark.parametrize("method", DESCRIPTORS)
def test_retrieved_frames_change_the_video(root, settings, method, monkeypatch):
    pipeline = with_memory(root, settings, method)
    sample = Sample(PROMPTS[0])
    remembered = latents(pipeline, sample)
    first = next(b.selection.query_frame for b in pipeline.blocks([sample]) if b.selection)
    monkeypatch.setattr(TieredMemory, "fetch", lambda self, frame, sample, out: out.zero_())
    forgotten = latents(pipeline, sample)
    assert torch.equal(remembered[:, :first], forgotten[:, :first])
    assert (remembered[:, first:] - forgotten[:, first:]).abs().max() > 1e-3


def test_which_frames_are_retrieved_changes_the_video(root, settings):
    similar = with_memory(root, settings)
    recent = with_memory(root, settings, selection="recency")
    sample = Sample(PROMPTS[0])
    assert [b.selection and b.selection.frames for b in similar.blocks([sample])] != [
        b.selection and b.selection.frames for b in recent.blocks([sample])
    ]
    assert not torch.allclose(latents(similar, sample), latents(recent, sample), atol=1e-3)


@pytest.mark.parametrize("kwargs", [{"use_latentmem": False}, {}, {"unused_to_local": True}], ids=str)
def test_a_batch_of_three_equals_three_singles(root, settings, kwargs):
    pipeline = with_memory(root, settings, **kwargs)
    samples = [Sample(prompt, index) for index, prompt in enumerate(PROMPTS)]
    together = latents(pipeline, *samples)
    for row, sample in enumerate(samples):
        torch.testing.assert_close(together[row : row + 1], latents(pipeline, sample), atol=1e-5, rtol=0)


class Plainly(PlainCache):
    """The plain way in the cache's place."""

    def __init__(self, params, policy, height, width, batch, memory, device, dtype):
        super().__init__((height // 2, width // 2), device)


@pytest.mark.parametrize("kwargs", [{"use_latentmem": False}, {}, {"unused_to_local": True}], ids=str)
@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("bfloat16", 0.05)])
def test_a_generation_equals_one_with_a_plain_context(root, settings, kwargs, dtype, bound, monkeypatch):
    """In float32 to rounding; in bfloat16 within a quarter of what that type itself changes in these latents (0.2)."""
    pipeline = with_memory(root, settings | {"dtype": dtype}, **kwargs)
    sample = Sample(PROMPTS[0])
    found = latents(pipeline, sample)
    monkeypatch.setattr("pipeline.pipeline.KVCache", Plainly)
    torch.testing.assert_close(found, latents(pipeline, sample), atol=bound, rtol=0)


def test_frames_fetched_ahead_are_those_fetched_in_time(root, settings, monkeypatch):
    pipeline = with_memory(root, settings)
    expected = latents(pipeline, Sample(PROMPTS[0]))
    recall, begin = KVCache.recall, KVCache.begin

    def begin_with_fetch(cache, plan):
        recall(cache, plan.memory)
        begin(cache, plan)

    monkeypatch.setattr(KVCache, "recall", lambda cache, memory: None)
    monkeypatch.setattr(KVCache, "begin", begin_with_fetch)
    assert torch.equal(latents(pipeline, Sample(PROMPTS[0])), expected)


def test_tiers_leave_the_video_as_it_is(root, settings):
    sample, frame = Sample(PROMPTS[0]), 2 * 2 * 6 * 48 * 4e-9  # GB of a frame's keys and values
    tiers = {"bank": {"device_gb": 2.1 * frame, "host_gb": 3.1 * frame, "disk_gb": 100 * frame}}
    assert torch.equal(
        latents(with_memory(root, settings | tiers), sample), latents(with_memory(root, settings), sample)
    )


def test_text_keys_and_values_kept_for_a_prompt_are_those_of_every_forward(root, settings, monkeypatch):
    pipeline = with_memory(root, settings)
    expected = latents(pipeline, Sample(PROMPTS[0]))
    encode, forward = CausalWanModel.encode_text, CausalWanModel.forward
    monkeypatch.setattr(CausalWanModel, "encode_text", lambda model, embeddings: embeddings)
    monkeypatch.setattr(
        CausalWanModel, "forward", lambda model, x, t, text, context: forward(model, x, t, encode(model, text), context)
    )
    assert torch.equal(latents(pipeline, Sample(PROMPTS[0])), expected)


def test_decoding_beside_generation_gives_the_frames_of_decoding_after_it(root, settings, monkeypatch):
    pipeline, sample = with_memory(root, settings), Sample(PROMPTS[0])
    written = []

    class Frames:
        frames = 0

        def __init__(self, *arguments): ...

        def write(self, frames):
            written.append(frames)

        close = discard = lambda self: None

    monkeypatch.setattr(outputs, "VideoWriter", Frames)
    outputs.save_videos(pipeline, [sample], [root / "beside.mp4"], dict, lambda *progress: None)
    decoded = StreamingDecoder(pipeline.vae)(latents(pipeline, sample))
    assert (np.concatenate(written) == to_uint8(decoded)[0]).all()


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_video_of_plain_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(miniature, "PARAMS", replace(miniature.PARAMS, num_layers=1))
    settings = make_family(tmp_path) | {"num_output_frames": 18}
    plain, compiled = (with_memory(tmp_path, settings | {"compile": choice}) for choice in (False, True))
    sample = Sample(PROMPTS[0])
    torch.testing.assert_close(latents(compiled, sample), latents(plain, sample), atol=1e-4, rtol=0)
    assert all(block._compiled_call_impl for block in compiled.model.blocks)


def test_other_block_sizes_and_lengths_run(root, settings):
    pipeline = with_memory(root, settings | {"num_frame_per_block": 2, "num_output_frames": 14}, sink_size=2)
    blocks = list(pipeline.blocks(PROMPTS[0]))
    assert [b.plan.own for b in blocks] == [(i, i + 1) for i in range(0, 14, 2)]
    assert any(b.selection for b in blocks)


def test_window_positions_alone_change_native(root, settings):
    absolute = with_memory(root, settings, use_latentmem=False)
    window = with_memory(root, settings, use_latentmem=False, window_positions=True)
    a, b = latents(absolute, Sample(PROMPTS[0])), latents(window, Sample(PROMPTS[0]))
    assert torch.equal(a[:, :6], b[:, :6]), "until the window is full the positions are the same"
    # Rotary attention sees differences of positions only, so just the distance to the sink differs.
    assert not torch.allclose(a[:, -3:], b[:, -3:], atol=1e-5)


def test_noise_depends_on_seed_prompt_sample_block_and_step_only():
    shape = (1, 3, 4, 2, 2)
    pair = SeededNoise(7, [(3, 0), (5, 1)]).draw(2, 1, (2, *shape[1:]))
    assert torch.equal(pair[1:], SeededNoise(7, [(5, 1)]).draw(2, 1, shape))
    others = [SeededNoise(8, [(3, 0)]), SeededNoise(7, [(4, 0)]), SeededNoise(7, [(3, 1)])]
    assert all(not torch.equal(pair[:1], other.draw(2, 1, shape)) for other in others)
    assert not torch.equal(pair[:1], SeededNoise(7, [(3, 0)]).draw(3, 1, shape))
    assert not torch.equal(pair[:1], SeededNoise(7, [(3, 0)]).draw(2, 2, shape))


def test_frames_of_the_stream_make_the_whole_video(root, settings):
    pipeline = with_memory(root, settings)
    video = pipeline.video(Sample(PROMPTS[0]))
    assert video.shape == (1 + 4 * (24 - 1), 32, 48, 3)
    streamed = [frames[0] for frames in pipeline.frames(Sample(PROMPTS[0]))]
    assert sum(map(len, streamed)) == len(video)
    assert (streamed[-1] == video[-len(streamed[-1]) :]).all()


def test_memory_holds_exactly_the_frames_that_left_the_local_part(root, settings):
    pipeline = with_memory(root, settings)
    blocks = list(pipeline.blocks(PROMPTS[0]))
    held = [block.memory_bytes for block in blocks]
    assert held[0] == held[1] == 0 and held == sorted(held)
    frame = 2 * 2 * 6 * 48 * 4  # key and value, layers, tokens, dim, bytes
    ring = 6  # the local part of 4 frames in whole blocks
    assert held[-1] == (24 - ring - 1) * frame


@pytest.mark.parametrize("rule", SELECTIONS)
def test_selection_rules_pick_distinct_candidates_in_a_fixed_order(rule):
    retrieval = Retrieval(lambda latents: latents.flatten(2), SELECTIONS[rule])
    retrieval.add(torch.randn(2, 20, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    first, again = retrieval.select(range(1, 15), 6), retrieval.select(range(1, 15), 6)
    assert first == again
    for row in first.frames:
        assert len(set(row)) == 6 and set(row) <= set(range(1, 15))
    assert all(len(row) == 2 for row in retrieval.select(range(1, 3), 6).frames)


def test_around_takes_what_lies_beside_the_most_similar_frame_on_both_sides():
    rule, frames = SELECTIONS["around"], [*range(1, 12), 14, 20]
    similarities = 1 - (torch.tensor(frames) - 10.2).abs() / 100
    assert [frames[i] for i in rule(similarities, frames, 5)] == [10, 7, 4, 1, 11]
    assert [frames[i] for i in rule(similarities.flip(0), frames, 4)] == [4, 7, 1, 10]


def test_random_draws_for_each_video_and_block_and_not_for_the_last_bits():
    rule, frames = SELECTIONS["random"], range(1, 41)
    similarities = torch.rand(20, 40, generator=torch.Generator().manual_seed(0))
    drawn = [tuple(rule(row, frames, 6)) for row in similarities]
    assert len(set(drawn)) == 20
    assert drawn == [tuple(rule(row.clone(), frames, 6)) for row in similarities]
    nudged = [tuple(rule(row + 1e-8, frames, 6)) for row in similarities]
    assert sum(a == b for a, b in zip(drawn, nudged, strict=True)) >= 19


class EveryOther(SlidingWindow):
    """A toy: [sink | every other frame of the window]; all that is needed to try a policy."""

    def plan(self, start, memory=()):
        plan = super().plan(start)
        local = plan.local[::-2][::-1]
        return ContextPlan(plan.sink, (), local, plan.own, (*plan.sink, *local, *plan.own))


@dataclass(frozen=True)
class Alone:
    """A toy of its own class: retrieved frames and the block, no sink and no local frames."""

    retrieves = True
    layout: Layout

    @classmethod
    def build(cls, layout, kwargs):
        return cls(layout)

    @property
    def local_frames(self):
        return self.layout.block

    def candidates(self, start):
        return range(self.layout.sink, max(start - self.layout.block, self.layout.sink))

    def plan(self, start, memory=()):
        memory, own = tuple(map(tuple, memory)), tuple(range(start, start + self.layout.block))
        slots = range(len(memory[0]) if memory else 0)
        return ContextPlan((), memory, (), own, (*(0 for _ in slots), *range(1, 1 + self.layout.block)))


@pytest.mark.parametrize("policy", [EveryOther, Alone])
def test_a_policy_is_a_class_and_a_name_in_the_table(root, settings, policy, monkeypatch):
    monkeypatch.setitem(POLICIES, "toy", policy)
    pipeline = with_memory(root, settings, use_latentmem=False, policy="toy")
    blocks = list(pipeline.blocks(PROMPTS[0]))
    expected = policy.build(pipeline.config.layout(), pipeline.config.model_kwargs)
    for block in blocks:
        chosen = block.selection.frames if block.selection else ()
        assert block.plan == expected.plan(block.plan.own[0], chosen)
    assert any(block.selection for block in blocks) == policy.retrieves
    native = latents(with_memory(root, settings, use_latentmem=False), Sample(PROMPTS[0]))
    assert not torch.allclose(torch.cat([block.latents for block in blocks], dim=1), native, atol=1e-3)


def test_the_policys_name_and_the_old_switch_mean_the_same(root, settings):
    sample = Sample(PROMPTS[0])
    by_switch, by_name = (with_memory(root, settings, use_latentmem=on, policy=name)
                          for on, name in ((True, None), (False, "latentmem")))  # fmt: skip
    assert torch.equal(latents(by_switch, sample), latents(by_name, sample))


def test_similarity_picks_the_nearest_first_and_breaks_ties_by_age():
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    retrieval = Retrieval(lambda latents: vectors.unsqueeze(0))
    retrieval.add(torch.empty(0))
    chosen = retrieval.select(range(0, 4), 3)
    assert chosen.frames == ((1, 2, 3),)
    assert chosen.similarities[0] == pytest.approx((1.0, 1.0, 0.6))


def test_a_lora_gives_the_same_merged_or_beside_the_weights():
    import json
    from pathlib import Path

    from safetensors.torch import load_file

    from pipeline.noise import RecordedNoise
    from tests.replay import recorded_pipeline

    goldens = Path(__file__).parent / "goldens"
    tensors = load_file(goldens / "rollout_native_lora.safetensors")
    record = json.loads((goldens / "rollout_native_lora.json").read_text())
    produced = []
    for merge in (True, False):
        record["weights"]["adapter"] = record["adapter"] | {"merge": merge}
        pipeline = recorded_pipeline(record, goldens, tensors["noise"].shape)
        noise = RecordedNoise(tensors["noise"], tensors["renoise"])
        produced.append(torch.cat([b.latents for b in pipeline.blocks_of(tensors["prompt_embeds"], noise)], dim=1))
    torch.testing.assert_close(*produced, atol=2e-5, rtol=0)
    assert (produced[0] - tensors["latents_base_only"]).abs().max() > 1e-3


def test_samples_are_told_apart_by_their_numbers(root, settings):
    pipeline = with_memory(root, settings)
    one = Sample(PROMPTS[0])
    assert not torch.equal(latents(pipeline, one), latents(pipeline, replace(one, number=1)))
