"""query=draft: retrieved frames are like a draft of the block to come, which costs no forward of its own."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pipeline import load
from pipeline.bank.bank import Bank
from pipeline.config import load_config
from pipeline.samples import Sample
from tests.close import assert_differs
from tests.miniature import ROUNDINGS, latentmem
from utils.errors import UserError

SAMPLES = [Sample("a red house", 0), Sample("a blue tree at night", 1)]


def of_query(root, settings, query: str, **kwargs):
    return load(load_config(overrides=settings | {"model_kwargs": latentmem(root, query=query, **kwargs)}))


def test_retrieved_frames_are_those_most_like_the_first_step_without_memory(root, settings):
    pipeline = of_query(root, settings, "draft")
    generation = pipeline.start(SAMPLES)
    chosen = []
    while generation.start < 24:
        other = generation.fork()
        other.index = other.selection = None
        other.policy = replace(other.policy, query="last")
        other.sampler = copy.copy(other.sampler)
        other.sampler.timesteps = other.sampler.timesteps[:1]
        draft = other.denoise(other.begin())[:, -1]
        candidates = list(pipeline.policy.candidates(generation.start))
        block = generation.step()
        if not candidates:
            assert block.selection is None
            continue
        past = torch.cat(generation.kept.latents, dim=1)[:, candidates]
        similar = F.cosine_similarity(past.mean((3, 4)), draft.mean((2, 3))[:, None], dim=-1)
        best = similar.topk(min(3, len(candidates)), dim=1).indices.tolist()
        expected = tuple(tuple(candidates[place] for place in row) for row in best)
        assert block.selection.frames == expected
        assert tuple(block.plan.frames("retrieved", sample) for sample in range(2)) == expected
        chosen.append(expected)
    assert len(chosen) >= 3 and any(first != second for first, second in chosen)


def test_a_draft_costs_no_forward_of_its_own(root, settings):
    forwards = {}
    for query in ("last", "draft"):
        pipeline = of_query(root, settings, query)
        seen = forwards[query] = []
        pipeline.model.register_forward_pre_hook(lambda model, given, seen=seen: seen.append(given[1].flatten()[0]))
        list(pipeline.blocks(SAMPLES))
    assert forwards["draft"] == forwards["last"]


def test_what_a_draft_finds_changes_the_video_from_the_first_such_block_on(root, settings, monkeypatch):
    pipeline = of_query(root, settings, "draft")
    blocks = list(pipeline.blocks(SAMPLES))
    first = next(block.plan.start for block in blocks if block.selection)
    remembered = torch.cat([block.latents for block in blocks], dim=1)
    monkeypatch.setattr(Bank, "fetch", lambda self, frame, sample, out: out.zero_())
    forgotten = torch.cat([block.latents for block in pipeline.blocks(SAMPLES)], dim=1)
    assert torch.equal(remembered[:, :first], forgotten[:, :first])
    assert_differs(remembered[:, first:], forgotten[:, first:], ROUNDINGS)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"model_kwargs": {"bias": "recency"}}, "bias=recency needs them all alike; set query=last"),
        ({"model_kwargs": {"merge": "ema"}}, "merge=ema needs them all alike; set query=last"),
        ({"model_kwargs": {"compression_method": "useful"}}, "useful has a query of its own"),
        ({"denoising_step_list": [1000]}, "denoising_step_list has no other to see what was found"),
    ],
)
def test_what_a_draft_does_not_go_with_is_refused(root, settings, wrong, words):
    kwargs = latentmem(root, query="draft", local_attn_size=12) | wrong.get("model_kwargs", {})
    with pytest.raises(UserError, match=words):
        load_config(overrides=settings | wrong | {"model_kwargs": kwargs})
