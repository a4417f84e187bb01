"""Context policies are integer bookkeeping: their rules hold for every possible layout."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.context import COMMIT_RULES, LOCAL, MERGED, OWN, RETRIEVED, SINK
from pipeline.merging import WHOLE, DeepForcing
from pipeline.policies import CompressedPast, ReencodedWindow, RetrievedMemory, RollingSink, SlidingWindow
from utils.errors import UserError


@st.composite
def sizes(draw, memory: bool) -> dict[str, int]:
    block, sink = draw(st.integers(1, 4)), draw(st.integers(0, 6))
    slots = draw(st.integers(0, 8)) if memory else 0
    window = sink + slots + block + draw(st.integers(0, 12))
    found = {"local_attn_size": window, "sink_size": sink, "block": block}
    if memory:
        found |= {"memory_size": slots, "recent_exclude": draw(st.integers(0, 9))}
    return found


windows = st.builds(lambda found, at_window: SlidingWindow(**found, window_positions=at_window),
                    sizes(memory=False), st.booleans())  # fmt: skip
memories = st.builds(
    lambda found, more: RetrievedMemory(**found, **more),
    sizes(memory=True), st.sampled_from([{}, {"unused_to_local": True}, {"retrieve_after": "local"}]),
)  # fmt: skip
rollings = st.builds(lambda block, turns: RollingSink(local_attn_size=block * (2 + turns), sink_size=0, block=block),
                     st.integers(1, 4), st.integers(0, 5))  # fmt: skip
compressed = st.builds(
    lambda past, pool, more: CompressedPast(local_attn_size=5 + past + more, past_size=past, past_pool=pool),
    st.integers(0, 3), st.integers(1, 3), st.integers(0, 5),
)  # fmt: skip
reencoded = st.builds(
    lambda block, sink, blocks, plain: ReencodedWindow(
        local_attn_size=sink + block * blocks, sink_size=sink, block=block, plain_frames=sink + block * blocks + plain
    ),
    st.integers(1, 3), st.integers(0, 4), st.integers(3, 5), st.integers(0, 5),
)  # fmt: skip


@st.composite
def cutting(draw):
    """Deep Forcing of any size."""
    block, sink, older = draw(st.integers(1, 3)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    recent = block + draw(st.integers(0, block))
    budget = sink + older + recent
    window = budget + block + draw(st.integers(0, 2 * block))
    sizes = {"deep_budget": budget, "deep_recent": recent, "deep_uses": draw(st.integers(2, 7))}
    return DeepForcing(local_attn_size=window, sink_size=sink, block=block, **sizes)


@st.composite
def merging(draw):
    """Windows and retrieved memory whose leaving frames are merged."""
    merge = draw(st.sampled_from(["ema", "ema_adaptive", "tether", "nearest"]))
    found = draw(sizes(memory=draw(st.booleans())))
    found |= {"merge": merge, "merge_short": 0.2, "merged_size": draw(st.integers(1, 5))}
    found["local_attn_size"] += found["merged_size"] + 2
    if "memory_size" in found:
        return RetrievedMemory(**found)
    return SlidingWindow(**found, window_positions=True)


blocks = st.integers(0, 60)


@given(windows, blocks)
def test_a_sliding_window_sees_the_sink_and_the_latest_frames(policy, block):
    start = block * policy.block
    plan = policy.plan(start)
    end = start + policy.block
    seen = plan.attended()
    assert sorted(seen) == list(seen) and len(set(seen)) == len(seen)
    first_local = max(end - policy.local_attn_size + policy.sink_size, 0)
    assert seen == tuple(sorted({*range(min(policy.sink_size, end)), *range(first_local, end)}))
    if not policy.window_positions:
        assert plan.positions() == seen
    assert plan.frames(OWN) == tuple(range(start, end))


@given(memories, blocks, st.randoms())
def test_retrieved_memory_fits_its_window(policy, block, random):
    start = block * policy.block
    candidates = list(policy.candidates(start))
    chosen = random.sample(candidates, min(policy.memory_size, len(candidates)))
    plan = policy.plan(start, [chosen] if chosen else [])
    pieces = plan.pieces()
    assert len(pieces) <= policy.local_attn_size == len(policy.largest)
    assert min(plan.positions()) >= 0 and max(plan.positions()) < policy.local_attn_size
    assert len(plan.frames(LOCAL)) + policy.block <= policy.recent
    if policy.unused_to_local and start >= policy.local_attn_size:
        assert len(pieces) == policy.local_attn_size
    assert plan.frames(RETRIEVED) == tuple(chosen)
    assert {piece.position for piece in pieces if piece.role == RETRIEVED} <= {0}
    placed = [piece.position for piece in pieces if piece.role != RETRIEVED]
    assert len(set(placed)) == len(placed), "two frames of sink and local share a position"


@given(memories, blocks)
def test_candidates_left_the_window_or_the_local_part_and_are_not_attended_already(policy, block):
    assume(policy.memory_size)
    start = block * policy.block
    candidates = policy.candidates(start)
    assert not set(candidates) & set(range(policy.sink_size))
    if candidates:
        assert candidates[0] == policy.sink_size
        first_seen = start - policy.local_attn_size + policy.sink_size
        if policy.retrieve_after == "local":
            first_seen = start + policy.block - policy.local_size
        assert candidates[-1] == first_seen - policy.recent_exclude - 1
        plan = policy.plan(start, [tuple(candidates)[: policy.memory_size]])
        assert not set(candidates) & {*plan.frames(LOCAL), *plan.frames(SINK)}


@given(memories, blocks)
def test_queries_sit_at_the_end_of_the_window(policy, block):
    start = block * policy.block
    plan = policy.plan(start)
    first = min(start, policy.local_attn_size - policy.block)
    assert [piece.position for piece in plan.own] == list(range(first, first + policy.block))


@pytest.mark.parametrize(
    "sizes, names",
    [
        ({"local_attn_size": 5, "sink_size": 3}, ["local_attn_size 5", "at least 6"]),
        ({"local_attn_size": 12, "sink_size": 1, "memory_size": 9}, ["memory_size 9", "at most 8"]),
        ({"local_attn_size": 12, "sink_size": 1, "memory_size": -1}, ["memory_size", "at least 0"]),
        ({"merge": "ema", "unused_to_local": True}, ["merge ema", "unused_to_local=false"]),
        ({"retrieve_after": "local", "unused_to_local": True}, ["retrieve_after local", "unused_to_local=false"]),
        ({"merge": "tether", "merged_size": 9}, ["merge tether", "9 frames", "leaves 2"]),
    ],
)
def test_impossible_layouts_are_refused_with_the_reason(sizes, names):
    with pytest.raises(UserError) as error:
        RetrievedMemory(**sizes)
    assert all(name in str(error.value) for name in names)


@given(rollings, st.integers(0, 40))
def test_a_rolling_sink_goes_to_and_fro_through_the_first_frames(policy, block):
    start = block * policy.block
    plan = policy.plan(start)
    past = plan.past[0]
    assert [piece.position for piece in past] == list(
        range(max(start + policy.block - policy.local_attn_size, 0), start)
    )
    for piece in past:
        real = piece.position >= start - policy.block
        assert piece.frame == piece.position if real else piece.frame < policy.pinned
    for one, other in pairwise(past):
        if other.position < start - policy.block:
            assert abs(one.frame - other.frame) <= 1, "neighbours in the window are neighbours among the first frames"


@given(compressed, blocks)
def test_a_compressed_past_fits_its_room_and_joins_the_local_frames(policy, block):
    start = block * policy.block
    plan = policy.plan(start)
    assert len(plan.pieces()) <= len(policy.largest)
    seen = plan.attended()
    assert list(seen) == sorted(set(seen))
    after_sink = [frame for frame in seen if frame >= policy.sink_size]
    assert after_sink == list(range(after_sink[0], after_sink[-1] + 1)), "no gap between older and local frames"


@given(merging(), blocks)
def test_merged_frames_take_in_every_frame_that_leaves_once_and_fit_the_window(policy, block):
    start = block * policy.block
    plan = policy.plan(start)
    assert len(plan.pieces()) <= policy.local_attn_size
    positions = plan.positions()
    assert len(set(positions)) == len(positions)
    if not plan.leaving:
        assert not plan.frames(MERGED)
        return
    assert len(plan.frames(MERGED)) == policy.merged_frames
    oldest = start + policy.block - policy.recent
    assert min(plan.leaving) >= oldest, "what is kept at hand"
    assert max(plan.leaving) + 1 == min((*plan.frames(LOCAL), start))
    following = policy.plan(start + policy.block)
    assert following.leaving[0] == plan.leaving[-1] + 1
    first = next(one.leaving for one in map(policy.plan, range(0, start + 1, policy.block)) if one.leaving)
    assert first[0] == policy.sink_size if policy.merge in WHOLE else len(first) <= policy.block


@given(cutting(), blocks)
def test_a_cut_window_never_overflows_and_takes_in_every_frame_once(policy, block):
    start = block * policy.block
    plan = policy.plan(start)
    assert len(plan.pieces()) <= policy.local_attn_size
    if policy.cut_before(start) == start:
        assert len(plan.pieces()) == policy.deep_budget
    left = [frame for begun in range(0, start + 1, policy.block) for frame in policy.plan(begun).leaving]
    seen = [*range(min(policy.sink_size, start)), *left, *plan.frames(LOCAL), *plan.frames(OWN)]
    assert seen == list(range(start + policy.block))
    oldest = start + policy.block - policy.recent
    assert min((*plan.leaving, *plan.frames(LOCAL), start)) >= oldest, "what is kept at hand"


@pytest.mark.parametrize("rule", COMMIT_RULES)
@given(st.one_of(windows, memories), blocks)
def test_a_commit_keeps_the_block_where_it_was_and_sees_real_frames_alone(rule, policy, block):
    policy = replace(
        policy, commit_rule=rule, commit_frames=policy.block + min(2, policy.local_attn_size - policy.block)
    )
    start = block * policy.block
    candidates = list(policy.candidates(start))[: policy.memory_size]
    plan = policy.plan(start, [candidates] if candidates else [])
    commit = policy.commit(plan)
    assert commit.own == plan.own
    if rule != "same":
        assert not commit.frames(RETRIEVED)
    if rule == "own":
        assert commit.past == ((),)
    if rule == "newest":
        assert len(commit.pieces()) <= policy.commit_frames
        assert {piece.frame - piece.position for piece in commit.pieces()} == {start - plan.own[0].position}
    oldest = start + policy.block - policy.recent
    assert all(piece.role != LOCAL or piece.frame >= oldest for piece in commit.pieces()), "what is kept at hand"
