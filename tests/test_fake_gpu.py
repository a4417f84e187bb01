"""What can go wrong on a GPU alone, on none: placement, order of streams, memory given back early, waits, copies."""

import pytest
import torch

from benchmarks.fake_gpu import FakeGPU
from benchmarks.fake_gpu.engine import Case, make_model, make_pipeline, start
from pipeline.weight_stream import PIECE
from tests.gpu_cases import CASES, FRAME, LATENTMEM, NATIVE, SHORT, seen, seen_case
from tests.mutations import FOUND_BY, fault_of, places
from utils.streams import SideStream


@pytest.fixture(scope="module")
def native():
    return seen(NATIVE)


@pytest.fixture(scope="module")
def latentmem():
    return seen(LATENTMEM)


@pytest.mark.parametrize("case", sorted(set(CASES) - {"host", "sink, low"}))
def test_tensors_meet_on_one_device_and_streams_in_order(case):
    assert seen_case(case).faults == []


def test_a_native_block_waits_for_nothing_and_copies_noise_and_angles(native):
    assert native.faults == []
    assert native.tally.waits == {}
    noise = 2 * 3 * 16 * 60 * 104 * 4  # of two blocks of one step, in float32
    assert noise <= native.tally.copied("H2D") < noise + 1e5
    assert native.tally.copied("D2H") == 0


def test_a_retrieving_block_waits_once_behind_its_commit(latentmem):
    assert latentmem.faults == []
    assert sum(latentmem.tally.waits.values()) == 2 - 1  # nothing is chosen after the last of two blocks


def test_a_block_that_asks_with_a_draft_waits_once_for_what_is_like_it():
    drafted = seen_case("draft")
    assert sum(drafted.tally.waits.values()) == 2
    assert drafted.tally.copied("D2H", "main") < 1e5


@pytest.mark.parametrize("case", ["host", "draft"])
def test_what_comes_to_the_host_does_not_pile_up_in_pinned_memory(case):
    settings, _ = CASES[case]
    gpu = FakeGPU()
    with gpu.installed():
        generation = start(make_pipeline(Case(SHORT | settings), gpu))
        for _ in range(7):
            generation.step()
    assert len(generation.index.coming) <= 1


def test_frames_leave_and_come_beside_the_forwards(latentmem):
    frames = 2 * 3
    assert latentmem.tally.copied("D2H", "store") == frames * FRAME
    assert latentmem.tally.copied("D2H", "main") < 1e5
    assert latentmem.tally.copied("H2D", "fetch") % FRAME == 0
    assert latentmem.tally.copied("H2D", "fetch") > 0


def test_nothing_is_copied_through_pageable_memory(latentmem):
    assert {how for _, _, how in latentmem.tally.copies} == {"beside the host"}


def test_weights_in_host_memory_come_ahead_and_nobody_waits():
    found = seen_case("sink, low")
    assert found.faults == []
    assert found.tally.waits == {}
    block = make_model(1, "cpu").blocks[0]
    size = sum(weight.nbytes for weight in block.parameters())
    forwards = 2 * 2  # of two blocks: one step and the commit
    assert size <= found.tally.copied("H2D", "weights") / (forwards * 4) < size + 1e4
    copies = sum(count for (_, stream, _), count in found.tally.copies.items() if stream == "weights")
    assert copies == forwards * 4 * -(-size // PIECE)


@pytest.mark.parametrize("call", ["KVCache.begin: self.side.join()", "KVCache._retire: ", "WeightStream.enter: "])
def test_a_wait_that_is_taken_away_is_missed(call):
    (place,) = [place for place in places() if call in place.name]
    assert fault_of(place, FOUND_BY[place.name])


def test_every_wait_of_the_engine_is_one_whose_loss_was_tried():
    assert [place.name for place in places()] == list(FOUND_BY), "run python -m tests.mutations"


def test_rotation_moves_little_more_than_what_it_rotates(native):
    moved = sum(size for site, size in native.tally.sites.items() if site.startswith("wan/kernels.py"))
    frames = 2 * 2 * 3  # of blocks and forwards
    angles = 1560 * 64 * 8  # of a frame
    own = frames * (2 * FRAME * 3 / 2 + angles)
    values = 2 * 2 * 3 * FRAME  # what a commit leaves, read and written
    local = 8 * (2 * FRAME + angles)  # they have another place in the second block
    assert moved == own + values + local


def test_the_watcher_finds_what_has_no_order():
    gpu = FakeGPU()
    with gpu.installed():
        x = torch.zeros(4, device="cuda")
        side = SideStream("cuda", "side")
        with side.after(side.mark()):
            x.add_(1)
        x.mul_(2)
    assert any(fault.startswith("race: main writes") for fault in gpu.faults)


def test_the_watcher_finds_memory_given_back_early():
    gpu = FakeGPU()
    with gpu.installed():
        side = SideStream("cuda", "side")
        x = torch.zeros(1 << 20, device="cuda")
        with side.after_now():
            y = x + 1
        del x
        torch.zeros(1 << 20, device="cuda")
        del y
    assert any(fault.startswith("allocator:") for fault in gpu.faults)
    found = list(gpu.faults)
    with FakeGPU().installed() as gpu:
        side = SideStream("cuda", "side")
        x = torch.zeros(1 << 20, device="cuda")
        with side.after_now():
            x + 1
        x.record_stream(side.stream)
        del x
        torch.zeros(1 << 20, device="cuda")
    assert found and gpu.faults == []


def test_the_watcher_counts_what_the_host_waits_for():
    with FakeGPU().installed() as gpu:
        x = torch.zeros(4, device="cuda")
        x.cpu()
        x.sum().item()
        torch.zeros(4).to(gpu.device)
        torch.zeros(4).pin_memory().to(gpu.device, non_blocking=True)
    assert sum(gpu.tally.waits.values()) == 3


def test_the_watcher_refuses_tensors_of_two_devices():
    with FakeGPU().installed(), pytest.raises(RuntimeError, match="device"):
        torch.zeros(4, device="cuda") + torch.zeros(4)
