"""Context policies are integer bookkeeping: their rules hold for every possible layout."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.context import Layout, RetrievedMemory, SlidingWindow
from utils.errors import UserError


@st.composite
def layouts(draw, memory: bool) -> Layout:
    block = draw(st.integers(1, 4))
    sink = draw(st.integers(0, block))
    slots = draw(st.integers(0, 8)) if memory else 0
    window = draw(st.integers(sink + slots + block, sink + slots + block + 12))
    return Layout(window, sink, slots, draw(st.integers(0, 9)) if memory else 0, block)


blocks = st.integers(0, 60)


@given(layouts(memory=False), blocks, st.booleans())
def test_a_sliding_window_sees_the_sink_and_the_latest_frames(layout, block, window_positions):
    start = block * layout.block
    plan = SlidingWindow(layout, window_positions).plan(start)
    end = start + layout.block
    seen = plan.attended()
    assert sorted(seen) == list(seen) and len(set(seen)) == len(seen)
    assert seen == tuple(
        sorted({*range(min(layout.sink, end)), *range(max(end - layout.window + layout.sink, 0), end)})
    )
    if not window_positions:
        assert plan.positions == seen


@given(layouts(memory=True), blocks, st.booleans(), st.randoms())
def test_retrieved_memory_fits_its_window(layout, block, unused_to_local, random):
    start = block * layout.block
    policy = RetrievedMemory(layout, unused_to_local)
    candidates = list(policy.candidates(start))
    chosen = random.sample(candidates, min(layout.memory, len(candidates)))
    plan = policy.plan(start, [chosen] if chosen else [])
    assert len(plan.attended()) <= layout.window
    assert len(plan.positions) == len(plan.attended())
    assert max(plan.positions) < layout.window and min(plan.positions) >= 0
    assert len(plan.local) + len(plan.own) <= policy.local_frames
    if unused_to_local and start >= layout.window:
        assert len(plan.attended()) == layout.window
    memory = slice(len(plan.sink), len(plan.sink) + len(chosen))
    assert plan.attended()[memory] == tuple(chosen)
    assert set(plan.positions[memory]) <= {0}
    placed = plan.positions[: memory.start] + plan.positions[memory.stop :]
    assert len(set(placed)) == len(placed), "two frames of sink and local share a position"


@given(layouts(memory=True), blocks, st.booleans())
def test_candidates_left_the_window_and_are_not_attended_already(layout, block, unused_to_local):
    assume(layout.memory)
    start = block * layout.block
    policy = RetrievedMemory(layout, unused_to_local)
    candidates = policy.candidates(start)
    assert not set(candidates) & set(range(layout.sink))
    if candidates:
        assert candidates[0] == layout.sink
        assert candidates[-1] < start - layout.window + layout.sink - layout.recent_exclude
        assert not set(candidates) & set(policy.plan(start, [tuple(candidates)[: layout.memory]]).local)


@given(layouts(memory=True), blocks)
def test_queries_sit_at_the_end_of_the_window(layout, block):
    start = block * layout.block
    plan = RetrievedMemory(layout).plan(start)
    first = min(start, layout.window - layout.block)
    assert plan.query_positions == tuple(range(first, first + layout.block))


@pytest.mark.parametrize(
    "sizes, names",
    [
        ({"window": 5, "sink": 3}, ["local_attn_size 5", "at least 6"]),
        ({"window": 12, "sink": 4}, ["sink_size 4", "at most 3"]),
        ({"window": 12, "sink": 1, "memory": 9}, ["memory_size 9", "at most 8"]),
        ({"window": 12, "sink": 1, "memory": -1}, ["negative"]),
    ],
)
def test_impossible_layouts_are_refused_with_the_reason(sizes, names):
    with pytest.raises(UserError) as error:
        Layout(**sizes)
    assert all(name in str(error.value) for name in names)
