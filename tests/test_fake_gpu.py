"""What can go wrong on a GPU alone, on none: placement, order of streams, memory given back early, waits, copies."""

import pytest
import torch

from benchmarks.fake_gpu import FakeGPU
from benchmarks.fake_gpu.engine import Case, watch
from utils.streams import SideStream

FRAME = 2 * 1560 * 1536 * 2  # bytes of a frame's keys and values in one layer of 1.3B at 480x832, bfloat16
GB = FRAME / 1e9
WINDOW = {"local_attn_size": 8, "sink_size": 1}
NATIVE = {"model_kwargs": WINDOW}
LATENTMEM = {
    "model_kwargs": WINDOW
    | {"use_latentmem": True, "compression_method": "avg_pool", "memory_size": 2, "recent_exclude": 0}
    | {"selection": "random"}
}
TIERS = {"device_gb": 2.5 * GB, "host_gb": 3.5 * GB, "disk_gb": 100 * GB}
BOUND = {"capacity": 8, "eviction": "redundancy", "storage": "fp8"}
SHORT = {"denoising_step_list": [1000]}


def seen(settings: dict, **case):
    """A few blocks of one layer, two of them counted, past the first retrievals."""
    return watch(Case({**SHORT, **settings}, blocks=7, counted=2, **case))


@pytest.fixture(scope="module")
def native():
    return seen(NATIVE)


@pytest.fixture(scope="module")
def latentmem():
    return seen(LATENTMEM)


@pytest.mark.parametrize(
    "settings",
    [
        LATENTMEM | {"bank": TIERS | {"storage": "int8", "device_gb": GB, "host_gb": 2 * GB}},
        LATENTMEM | {"bank": TIERS, "batch_size": 2},
        LATENTMEM | {"bank": TIERS | {"host_gb": 0.0}},
        LATENTMEM | {"bank": BOUND, "memory": "low"},
        {"model_kwargs": WINDOW | {"policy": "compressed_past", "past_size": 2}, "weights": "cast_fp8"},
        {"model_kwargs": WINDOW | {"policy": "rolling_sink"}, "memory": "low", "weights": "cast_fp8"},
    ],
    ids=["tiers-int8", "tiers-batch", "device-disk", "bound-fp8-low", "compressed-cast", "rolling-low-cast"],
)
def test_tensors_meet_on_one_device_and_streams_in_order(settings):
    assert seen(settings).faults == []


def test_decoding_beside_generation_is_in_order():
    found = seen(NATIVE, vae="tiny")
    assert found.faults == []
    assert found.tally.kernels["decode"] > 0


def test_a_native_block_waits_for_nothing_and_copies_noise_and_angles(native):
    assert native.faults == []
    assert native.tally.waits == {}
    noise = 2 * 3 * 16 * 60 * 104 * 4  # of two blocks of one step, in float32
    assert noise <= native.tally.copied("H2D") < noise + 1e5
    assert native.tally.copied("D2H") == 0


def test_a_retrieving_block_waits_once_behind_its_commit(latentmem):
    assert latentmem.faults == []
    assert sum(latentmem.tally.waits.values()) == 2 - 1  # nothing is chosen after the last of two blocks


def test_frames_leave_and_come_beside_the_forwards(latentmem):
    frames = 2 * 3
    assert latentmem.tally.copied("D2H", "store") == frames * FRAME
    assert latentmem.tally.copied("D2H", "main") < 1e5
    assert latentmem.tally.copied("H2D", "fetch") % FRAME == 0
    assert latentmem.tally.copied("H2D", "fetch") > 0


def test_nothing_is_copied_through_pageable_memory(latentmem):
    assert {how for _, _, how in latentmem.tally.copies} == {"beside the host"}


def test_rotation_moves_little_more_than_what_it_rotates(native):
    moved = sum(size for site, size in native.tally.sites.items() if site.startswith("wan/kernels.py"))
    frames = 2 * 2 * 3  # of blocks and forwards
    angles = frames * 1560 * 64 * 8
    values = 2 * 2 * 3 * FRAME  # what a commit leaves, read and written
    assert moved == 2 * frames * FRAME * 3 / 2 + angles + values


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
