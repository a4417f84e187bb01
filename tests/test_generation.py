"""Properties of generation: memory matters, batches and noise do not interfere, fast and plain paths agree."""

import os
import shutil
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest
import torch

from pipeline import film, sinks
from pipeline.bank.bank import Bank
from pipeline.build import load
from pipeline.config import load_config
from pipeline.context import RETRIEVED, SINK, ContextPlan, ContextPolicy, Piece, own
from pipeline.descriptors import DESCRIPTORS
from pipeline.kv_cache import KVCache
from pipeline.noise import RecordedNoise, SeededNoise
from pipeline.pipeline import Pipeline
from pipeline.plain import PlainCache
from pipeline.policies import POLICIES, SlidingWindow
from pipeline.retrieval import Retrieval
from pipeline.samples import Sample
from pipeline.scenes import SWITCHES
from pipeline.selection import SELECTIONS
from tests.close import assert_close, assert_differs
from tests.miniature import ROUNDINGS, WAN_2_1, latentmem, make_family
from utils.errors import UserError
from wan.model import CausalWanModel

PROMPTS = ["a red house", "a blue tree at night", "a red tree"]


def latents(pipeline: Pipeline, *samples: Sample) -> torch.Tensor:
    return torch.cat([block.latents for block in pipeline.blocks(samples)], dim=1)


def with_memory(root, settings, method="avg_pool", **kwargs) -> Pipeline:
    return load(load_config(overrides=settings | {"model_kwargs": latentmem(root, method) | kwargs}))


def plain_cache(pipeline: Pipeline, batch: int, index: object) -> PlainCache:
    return PlainCache(pipeline.frame_shape(batch))


@pytest.mark.parametrize("method", [name for name in DESCRIPTORS if name != "useful"])  # see test_usefulness.py
def test_retrieved_frames_change_the_video(root, settings, method, monkeypatch):
    pipeline = with_memory(root, settings, method)
    sample = Sample(PROMPTS[0])
    remembered = latents(pipeline, sample)
    first = next(b.selection.block_start for b in pipeline.blocks([sample]) if b.selection)
    monkeypatch.setattr(Bank, "fetch", lambda self, frame, sample, out: out.zero_())
    forgotten = latents(pipeline, sample)
    assert torch.equal(remembered[:, :first], forgotten[:, :first])
    assert_differs(remembered[:, first:], forgotten[:, first:], ROUNDINGS)


def test_which_frames_are_retrieved_changes_the_video(root, settings):
    similar = with_memory(root, settings)
    recent = with_memory(root, settings, selection="recency")
    sample = Sample(PROMPTS[0])
    assert [b.selection and b.selection.frames for b in similar.blocks([sample])] != [
        b.selection and b.selection.frames for b in recent.blocks([sample])
    ]
    assert_differs(latents(similar, sample), latents(recent, sample), ROUNDINGS)


@pytest.mark.parametrize("kwargs", [{"use_latentmem": False}, {}, {"unused_to_local": True}], ids=str)
def test_a_batch_of_three_equals_three_singles(root, settings, kwargs):
    pipeline = with_memory(root, settings, **kwargs)
    samples = [Sample(prompt, index) for index, prompt in enumerate(PROMPTS)]
    together = latents(pipeline, *samples)
    for row, sample in enumerate(samples):
        # products of other shapes add up in another order
        assert_close(together[row : row + 1], latents(pipeline, sample), ROUNDINGS)


@pytest.mark.parametrize("kwargs", [{"use_latentmem": False}, {}, {"unused_to_local": True}], ids=str)
def test_a_generation_equals_one_with_a_plain_context(root, settings, kwargs, monkeypatch):
    """In float32 to rounding, as keys lie in another order."""
    pipeline, sample = with_memory(root, settings, **kwargs), Sample(PROMPTS[0])
    found = latents(pipeline, sample)
    monkeypatch.setattr(Pipeline, "build_cache", plain_cache)
    assert_close(found, latents(pipeline, sample), ROUNDINGS)


@pytest.mark.parametrize("kwargs", [{"use_latentmem": False}, {}, {"unused_to_local": True}], ids=str)
def test_a_bfloat16_generation_nearly_equals_one_with_a_plain_context(root, settings, kwargs, monkeypatch):
    """Keys in another order may change a number's last of 8 bits, and whatever follows from it.

    So the bound is no number: the order may change the video by half of what bfloat16 itself changes in it.
    """
    sample = Sample(PROMPTS[0])
    pipeline = with_memory(root, settings | {"dtype": "bfloat16"}, **kwargs)
    found = latents(pipeline, sample)
    monkeypatch.setattr(Pipeline, "build_cache", plain_cache)
    plain = latents(pipeline, sample)
    exact = latents(with_memory(root, settings, **kwargs), sample)
    assert (found - plain).norm() < (plain - exact).norm() / 2
    assert (plain - exact).norm() < exact.norm() / 20


def test_frames_fetched_ahead_are_those_fetched_in_time(root, settings, monkeypatch):
    pipeline = with_memory(root, settings)
    expected = latents(pipeline, Sample(PROMPTS[0]))
    monkeypatch.setattr(KVCache, "prefetch", lambda cache, retrieved: None)
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
    encode, run = CausalWanModel.encode_text, CausalWanModel._run
    monkeypatch.setattr(CausalWanModel, "encode_text", lambda model, embeddings: embeddings)
    monkeypatch.setattr(
        CausalWanModel,
        "_run",
        lambda model, layer, x, e0, text, *rest: run(model, layer, x, e0, encode(model, text), *rest),
    )
    assert torch.equal(latents(pipeline, Sample(PROMPTS[0])), expected)


def test_decoding_beside_generation_gives_the_frames_of_decoding_after_it(root, settings, monkeypatch):
    pipeline, sample = with_memory(root, settings), Sample(PROMPTS[0])
    written = []

    class Frames(film.VideoWriter):
        def write(self, frames):
            written.append(frames)
            super().write(frames)

    monkeypatch.setattr(film, "VideoWriter", Frames)
    sink = sinks.VideoSink(root, {sample: "beside"}, pipeline.config, weights=dict)
    sink.write(pipeline, [sample], [sample], pipeline.blocks([sample]), lambda block: None)
    after = np.concatenate(list(pipeline.frames([sample])), axis=1)  # the same blocks, each decoded when it is made
    assert (np.concatenate(written) == after[0]).all()


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_video_of_plain_ones(tmp_path):
    one_layer = replace(WAN_2_1, params=replace(WAN_2_1.params, num_layers=1))
    settings = make_family(tmp_path, family=one_layer) | {"num_output_frames": 18}
    plain, compiled = (with_memory(tmp_path, settings | {"compile": choice}) for choice in (False, True))
    sample = Sample(PROMPTS[0])
    # fused operations round less often, and sums are taken in another order
    assert_close(latents(compiled, sample), latents(plain, sample), ROUNDINGS)
    assert all("forward" in vars(block) for block in compiled.model.blocks)  # in place of the class's own


def test_other_block_sizes_and_lengths_run(root, settings):
    pipeline = with_memory(root, settings | {"num_frame_per_block": 2, "num_output_frames": 14}, sink_size=2)
    blocks = list(pipeline.blocks(PROMPTS[0]))
    assert [b.plan.attended()[-2:] for b in blocks] == [(i, i + 1) for i in range(0, 14, 2)]
    assert any(b.selection for b in blocks)


def test_window_positions_alone_change_native(root, settings):
    absolute = with_memory(root, settings, use_latentmem=False)
    window = with_memory(root, settings, use_latentmem=False, window_positions=True)
    a, b = latents(absolute, Sample(PROMPTS[0])), latents(window, Sample(PROMPTS[0]))
    assert torch.equal(a[:, :6], b[:, :6]), "until the window is full the positions are the same"
    # Rotary attention sees differences of positions only, so just the distance to the sink differs.
    assert_differs(a[:, -3:], b[:, -3:], ROUNDINGS)


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

    def select(candidates):
        return retrieval.select(candidates, 6, [Random(0), Random(1)])

    first, again = select(range(1, 15)), select(range(1, 15))
    assert first == again
    for row in first.frames:
        assert len(set(row)) == 6 and set(row) <= set(range(1, 15))
    assert all(len(row) == 2 for row in select(range(1, 3)).frames)


def test_around_takes_what_lies_beside_the_most_similar_frame_on_both_sides():
    rule, frames = SELECTIONS["around"], [*range(1, 12), 14, 20]
    similarities = [1 - abs(frame - 10.2) / 100 for frame in frames]
    assert [frames[i] for i in rule(similarities, frames, 5, Random(0))] == [10, 7, 4, 1, 11]
    assert [frames[i] for i in rule(similarities[::-1], frames, 4, Random(0))] == [4, 7, 1, 10]


def test_random_draws_depend_on_seed_video_and_block_alone(root, settings):
    pipeline = with_memory(root, settings, selection="random")
    samples = [Sample(PROMPTS[0]), Sample(PROMPTS[0], number=1)]

    def chosen(*samples):
        return [block.selection.frames for block in pipeline.blocks(samples) if block.selection]

    together = chosen(*samples)
    assert [frames[0] for frames in together] == [frames[0] for frames in chosen(samples[0])]
    assert [frames[0] for frames in together] != [frames[1] for frames in together]


class EveryOther(SlidingWindow):
    """A toy: [sink | every other frame of the window]; all that is needed to try a policy."""

    def plan(self, start, retrieved=()):
        plan = super().plan(start)
        row = plan.past[0]
        sinks = tuple(piece for piece in row if piece.role == SINK)
        return ContextPlan((sinks + row[len(sinks) :][::-2][::-1],), plan.own)


@dataclass(frozen=True, kw_only=True)
class Alone(ContextPolicy):
    """A toy of its own class: retrieved frames and the block, no sink and no local frames."""

    retrieves = True
    memory_size: int = 3

    @property
    def recent(self):
        return self.block

    def candidates(self, start):
        return range(self.sink_size, max(start - self.block, self.sink_size))

    def plan(self, start, retrieved=()):
        rows = [tuple(Piece(RETRIEVED, frame, 0) for frame in frames) for frames in retrieved or [()]]
        return ContextPlan(tuple(rows), own(self, start, start - 1))


@pytest.mark.parametrize("policy", [EveryOther, Alone])
def test_a_policy_is_a_class_and_a_name_in_the_table(root, settings, policy, monkeypatch):
    monkeypatch.setitem(POLICIES, "toy", policy)
    pipeline = with_memory(root, settings, use_latentmem=False, policy="toy")
    blocks = list(pipeline.blocks(PROMPTS[0]))
    expected = pipeline.config.policy()
    assert isinstance(expected, policy)
    for block in blocks:
        chosen = block.selection.frames if block.selection else ()
        assert block.plan == expected.plan(block.plan.start, chosen)
    assert any(block.selection for block in blocks) == policy.retrieves
    native = latents(with_memory(root, settings, use_latentmem=False), Sample(PROMPTS[0]))
    assert_differs(torch.cat([block.latents for block in blocks], dim=1), native, ROUNDINGS)


def test_given_blocks_leave_what_sampled_ones_leave(root, settings):
    """A generation whose first blocks are given goes on as the one that sampled them, to the last bit."""
    pipeline = with_memory(root, settings)
    expected = list(pipeline.blocks(PROMPTS[0]))
    generation = pipeline.start(PROMPTS[0])
    for block in expected[:5]:
        given = generation.give(block.latents)
        assert (given.plan, given.selection) == (block.plan, block.selection)
    for block in expected[5:]:
        assert torch.equal(generation.step().latents, block.latents)


def test_a_commit_may_see_another_context_than_the_denoising(root, settings, monkeypatch):
    class Forgetful(SlidingWindow):
        def commit(self, plan):
            return ContextPlan(((),), plan.own)

    monkeypatch.setitem(POLICIES, "toy", Forgetful)
    native, toy = (with_memory(root, settings, use_latentmem=False, policy=name) for name in ("native", "toy"))
    a, b = latents(native, Sample(PROMPTS[0])), latents(toy, Sample(PROMPTS[0]))
    assert torch.equal(a[:, :6], b[:, :6]), "the second block reads the first one's keys, which nothing came before"
    assert_differs(a[:, 6:], b[:, 6:], ROUNDINGS)


def test_frame_wise_generation_runs(root, settings):
    sizes = {"num_frame_per_block": 1, "num_output_frames": 12}
    pipeline = with_memory(root, settings | sizes, sink_size=3, recent_exclude=0, memory_size=2)
    blocks = list(pipeline.blocks(PROMPTS[0]))
    assert len(blocks) == 12 and any(block.selection for block in blocks)


def test_the_euler_sampler_follows_the_flow_without_fresh_noise(root, settings):
    few_step = with_memory(root, settings)
    euler = with_memory(root, settings | {"sampler": "euler"})
    a, b = latents(few_step, Sample(PROMPTS[0])), latents(euler, Sample(PROMPTS[0]))
    assert torch.isfinite(b).all()
    assert_differs(a, b, ROUNDINGS)
    one_step = {"denoising_step_list": [1000]}
    once, once_euler = (with_memory(root, settings | one_step | {"sampler": name}) for name in ("few_step", "euler"))
    # one step to no noise: x + (0 - sigma) * v is x - sigma * v to the last bit
    assert torch.equal(latents(once, Sample(PROMPTS[0])), latents(once_euler, Sample(PROMPTS[0])))


def test_the_policys_name_and_the_old_switch_mean_the_same(root, settings):
    sample = Sample(PROMPTS[0])
    by_switch, by_name = (with_memory(root, settings, use_latentmem=on, policy=name)
                          for on, name in ((True, None), (False, "latentmem")))  # fmt: skip
    assert torch.equal(latents(by_switch, sample), latents(by_name, sample))


def test_similarity_picks_the_nearest_first_and_breaks_ties_by_age():
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    retrieval = Retrieval(lambda latents: vectors.unsqueeze(0))
    retrieval.add(torch.empty(0))
    chosen = retrieval.select(range(0, 4), 3, [Random(0)])
    assert chosen.frames == ((1, 2, 3),)
    # cosines of two float32 numbers each, some eight roundings of 6e-8
    assert chosen.similarities[0] == pytest.approx((1.0, 1.0, 0.6), abs=1e-6)


def test_a_lora_gives_the_same_merged_or_beside_the_weights():
    import json
    from pathlib import Path

    from safetensors.torch import load_file

    from tests.replay import recorded_pipeline

    goldens = Path(__file__).parent / "goldens"
    tensors = load_file(goldens / "rollout_native_lora.safetensors")
    record = json.loads((goldens / "rollout_native_lora.json").read_text())
    produced = []
    for merge in (True, False):
        record["weights"]["adapter"] = record["adapter"] | {"merge": merge}
        pipeline = recorded_pipeline(record, goldens, tensors["noise"].shape)
        noise = RecordedNoise(tensors["noise"], tensors["renoise"])
        generation = pipeline.start_from(tensors["prompt_embeds"], noise)
        blocks = [generation.step() for _ in range(0, pipeline.config.num_output_frames, 3)]
        produced.append(torch.cat([block.latents for block in blocks], dim=1))
    # one product of summed weights against two products, summed: another order in each of the blocks' linears
    assert_close(*produced, ROUNDINGS)
    assert_differs(produced[0], tensors["latents_base_only"], ROUNDINGS)


def test_samples_are_told_apart_by_their_numbers(root, settings):
    pipeline = with_memory(root, settings)
    one = Sample(PROMPTS[0])
    assert not torch.equal(latents(pipeline, one), latents(pipeline, replace(one, number=1)))


@pytest.mark.parametrize("how", SWITCHES)
@pytest.mark.parametrize("kwargs", [{"use_latentmem": False}, {}], ids=["native", "latentmem"])
def test_a_switched_prompt_changes_what_follows_and_equals_the_plain_way(root, settings, kwargs, how, monkeypatch):
    pipeline = with_memory(root, settings, **kwargs)

    def switched() -> torch.Tensor:
        generation = pipeline.start(PROMPTS[0])
        blocks = [generation.step() for _ in range(5)]
        generation.switch(pipeline.prompt_embeds([PROMPTS[1]]), how)
        blocks += [generation.step() for _ in range(3)]
        return torch.cat([block.latents for block in blocks], dim=1)

    found, unswitched = switched(), latents(pipeline, Sample(PROMPTS[0]))
    assert torch.equal(found[:, :15], unswitched[:, :15])
    assert not torch.allclose(found[:, 15:], unswitched[:, 15:], atol=1e-3)
    monkeypatch.setattr(Pipeline, "build_cache", lambda self, batch, index: PlainCache(self.frame_shape(batch)))
    assert_close(found, switched(), ROUNDINGS)


def test_an_unknown_switch_is_refused(root, settings):
    pipeline = with_memory(root, settings)
    with pytest.raises(UserError, match="did you mean 'flush'"):
        pipeline.start(PROMPTS[0]).switch(pipeline.prompt_embeds([PROMPTS[1]]), "flsh")
