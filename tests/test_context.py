"""Context policies are integer bookkeeping: their rules hold for every possible layout."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.context import LOCAL, OWN, RETRIEVED, SINK, RetrievedMemory, SlidingWindow
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
memories = st.builds(lambda found, spare: RetrievedMemory(**found, unused_to_local=spare),
                     sizes(memory=True), st.booleans())  # fmt: skip
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
def test_candidates_left_the_window_and_are_not_attended_already(policy, block):
    assume(policy.memory_size)
    start = block * policy.block
    candidates = policy.candidates(start)
    assert not set(candidates) & set(range(policy.sink_size))
    if candidates:
        assert candidates[0] == policy.sink_size
        assert candidates[-1] < start - policy.local_attn_size + policy.sink_size - policy.recent_exclude
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
    ],
)
def test_impossible_layouts_are_refused_with_the_reason(sizes, names):
    with pytest.raises(UserError) as error:
        RetrievedMemory(**sizes)
    assert all(name in str(error.value) for name in names)
