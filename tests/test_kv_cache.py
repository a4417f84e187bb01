"""The cache executes any plan: what it attends to equals the plain way, and nothing moves without need."""

import json
from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.bank.bank import Bank, build_bank
from pipeline.bank.codec import Plain
from pipeline.bank.settings import BankSettings
from pipeline.bank.tiers import RamTier
from pipeline.context import COMMIT_RULES, LOCAL, RETRIEVED, ContextPlan, ContextPolicy, Piece, own, sink
from pipeline.descriptors import AvgPool
from pipeline.frames import FrameShape
from pipeline.kv_cache import KVCache
from pipeline.plain import PlainCache
from pipeline.policies import RetrievedMemory
from pipeline.retrieval import Retrieval
from tests.close import assert_close
from tests.dense import DenseCache
from tests.test_context import compressed, cutting, memories, merging, reencoded, rollings, windows

BATCH = 2
SHAPE = FrameShape(batch=BATCH, layers=2, rows=3, columns=2, heads=2, head_dim=12)
TOKENS = SHAPE.tokens()


@dataclass(frozen=True, kw_only=True)
class PooledPast(ContextPolicy):
    """A toy: [sink | older frames at a part of their tokens | local], and a commit that sees the block alone."""

    retrieves = False

    @property
    def largest(self):
        return (1,) * self.local_attn_size + (2,) * 4

    @property
    def fetched(self):
        return (2,) * 4

    def plan(self, start, retrieved=()):
        first_local = max(self.sink_size, start + self.block - self.recent)
        older = range(max(self.sink_size, first_local - 4), first_local)
        past = [Piece(RETRIEVED, frame, frame, pool=2) for frame in older]
        past += [Piece(LOCAL, frame, frame) for frame in range(first_local, start)]
        return ContextPlan((sink(self, start) + tuple(past),), own(self, start))

    def commit(self, plan):
        return ContextPlan(((),), plan.own)


pooling = st.builds(
    lambda sink, extra: PooledPast(local_attn_size=sink + 3 + extra, sink_size=sink),
    st.integers(0, 4),
    st.integers(0, 5),
)


def banked(*slots: int, dtype: torch.dtype = torch.float32) -> Bank:
    return Bank([RamTier(f"tier {i}", count) for i, count in enumerate(slots)], Plain(dtype))


def attend(q, k, v, bias=None):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=bias)


def projections(block: int, generator: torch.Generator, dtype: torch.dtype = torch.float32):
    shape = (3, BATCH, block * TOKENS, SHAPE.heads, SHAPE.head_dim)
    return torch.randn(shape, generator=generator).to(dtype)


# Attention over keys in another order: products of 12 numbers (2), a softmax and weighted sum over up to some 100
# keys (12 each). Sums of bfloat16 numbers are taken in float32: only weights and results are rounded.
@pytest.mark.parametrize("dtype, roundings", [(torch.float32, 30), (torch.bfloat16, 2)])
@settings(max_examples=30)
@given(
    st.one_of(windows, memories, pooling, rollings, compressed, reencoded),
    st.sampled_from(sorted(COMMIT_RULES)),
    st.randoms(use_true_random=False),
)
def test_the_cache_equals_the_plain_way_for_any_policy(dtype, roundings, policy, rule, random):
    """Queries to the last bit; attention within the type's rounding, as its order of keys differs."""
    if not policy.encoded_frames:  # which has a commit of its own
        frames = policy.block + 1 if policy.local_size > policy.block else policy.block
        policy = replace(policy, commit_rule=rule, commit_frames=frames)
    require_equal(policy, 12, random, dtype, roundings)


@settings(max_examples=12)
@given(st.one_of(merging(), cutting()), st.sampled_from(sorted(COMMIT_RULES)), st.randoms(use_true_random=False))
def test_merged_frames_equal_their_equations_over_all_frames(policy, rule, random):
    policy = replace(policy, commit_rule=rule, commit_frames=policy.block)
    require_equal(policy, 3 + policy.local_attn_size // policy.block, random, torch.float32, 60)


@pytest.fixture(scope="module")
def head_lists(tmp_path_factory) -> str:
    """Of `SHAPE`: in the first layer the heads see different parts, in the second one of them sees all."""
    near = {"sees": {"sink": 1, "local": 1, "retrieved": 0, "merged": 0}, "heads": [[0], [1]]}
    far = {"sees": {"local": 0}, "heads": [[1], []]}
    path = tmp_path_factory.mktemp("heads") / "lists.json"
    path.write_text(json.dumps({"groups": {"near": near, "far": far}}))
    return str(path)


@settings(max_examples=8)
@given(st.one_of(windows, memories, merging()), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_what_heads_see_and_a_bias_equal_their_equations(head_lists, policy, grouped, biased, random):
    policy = replace(policy, head_groups=head_lists if grouped else None, bias="recency" if biased else "none")
    require_equal(policy, 2 + policy.local_attn_size // policy.block, random, torch.float32, 60)


def require_equal(policy: ContextPolicy, blocks: int, random: Random, dtype: torch.dtype, roundings: int) -> None:
    """Hold the cache to the dense way, forward by forward; frames are retrieved at random."""
    cache = KVCache(SHAPE, policy, banked(3, 200, dtype=dtype), dtype=dtype)
    plain = DenseCache(SHAPE, policy)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, blocks * policy.block, policy.block):
        candidates = list(policy.candidates(start))
        count = min(policy.memory_size, len(candidates))
        retrieved = [random.sample(candidates, count) for _ in range(BATCH)] if count else []
        if retrieved and random.random() < 0.5:
            cache.prefetch(retrieved)  # ahead of time, as a generation does
        forwards = []
        for again in policy.before(start):
            forwards.append(lambda context, again=again: context.commit(again))
        plan = policy.plan(start, retrieved)
        forwards.append(lambda context, plan=plan: context.begin(plan))
        if policy.bias != "none":
            forwards.append(lambda context: None)  # a second step of denoising
        forwards.append(lambda context, plan=plan: context.commit(policy.commit(plan)))
        for prepare in forwards:
            for context in (cache, plain):
                prepare(context)
            for layer in range(SHAPE.layers):
                q, k, v = projections(policy.block, generator, dtype)
                ours, theirs = cache.update(layer, q, k, v), plain.update(layer, q, k, v)
                assert torch.equal(ours.q, theirs.q)
                assert_close(attend(*ours), attend(*theirs), roundings)


def test_a_block_committed_again_is_read_as_it_was_left_last():
    """Redoing a block before the next one begins: later blocks see its second version, and nothing is retired twice."""
    policy = RetrievedMemory(local_attn_size=8, sink_size=1, memory_size=2, recent_exclude=0)
    cache, plain = KVCache(SHAPE, policy, banked(100)), PlainCache(SHAPE)
    generator = torch.Generator().manual_seed(1)
    for start in range(0, 24, 3):
        chosen = [list(policy.candidates(start))[:2]] * BATCH
        plan = policy.plan(start, chosen if chosen[0] else [])
        for _ in range(2):
            for context in (cache, plain):
                context.begin(plan)
                context.commit(plan)
            for layer in range(SHAPE.layers):
                q, k, v = projections(3, generator)
                ours, theirs = cache.update(layer, q, k, v), plain.update(layer, q, k, v)
                assert_close(attend(*ours), attend(*theirs), roundings=30)  # as above
    assert cache.bank.frames == list(range(1, 24 - len(cache.ring)))


def test_what_stays_selected_is_not_fetched_again():
    policy = RetrievedMemory(local_attn_size=8, sink_size=1, memory_size=3, recent_exclude=0)
    bank = banked(100)
    cache = KVCache(SHAPE, policy, bank)
    for start in range(0, 30, 3):
        plan = policy.plan(start, [[1, 2, 3], [3, 2, 4]] if start >= 18 else [])
        cache.begin(plan)
        cache.commit(plan)
        for layer in range(SHAPE.layers):
            cache.update(layer, *projections(3, torch.Generator()))
        if start == 18:
            before = bank.transfers.copies
    assert bank.transfers.copies - before == 3 * 3, "in three blocks, only the frames that left the window are copied"


def test_a_run_with_bounded_tiers_keeps_its_memory_flat():
    """After 40 blocks and after 120 it holds the same bytes, in the same buffers."""
    policy = RetrievedMemory(local_attn_size=8, sink_size=1, memory_size=3, recent_exclude=0)
    index = Retrieval(AvgPool().load((4, 2, 2), "cpu"))
    bank = build_bank(BankSettings(capacity=10), index, SHAPE.dims, 1000)
    cache = KVCache(SHAPE, policy, bank)
    counts = []
    for block in range(120):
        start = 3 * block
        candidates = cache.available(policy.candidates(start))
        chosen = index.select(candidates, 3, [Random(0)] * BATCH).frames if candidates else ()
        plan = policy.plan(start, chosen)
        cache.begin(plan)
        cache.commit(plan)
        for layer in range(SHAPE.layers):
            cache.update(layer, *projections(3, torch.Generator()))
        index.add(torch.randn(BATCH, 3, 4, 2, 2))
        if block in (40, 119):
            buffers = [len(tier.slabs) for tier in bank.tiers]
            counts.append((bank.tier_bytes, buffers, len(bank.frames), len(index.rows), len(index.table)))
    assert counts[0] == counts[1]


def test_the_bytes_that_are_planned_are_the_bytes_that_are_made():
    for policy in (PooledPast(), RetrievedMemory()):
        cache = KVCache(SHAPE, policy, banked(1))
        made = [cache.ring, cache.pinned, cache.context.kv, *cache.staged.buffers]
        assert KVCache.nbytes_of(SHAPE, policy, torch.float32) == sum(buffer.nbytes for buffer in made)
