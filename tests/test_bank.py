"""The bank keeps what it is given, within its budgets, and forgets by its rule; faults are named."""

import os
import signal
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bank.bank import Bank, build_bank
from pipeline.bank.codec import STORAGES, Plain, build_codec
from pipeline.bank.eviction import EVICTIONS, BankState
from pipeline.bank.settings import BankSettings
from pipeline.bank.tiers import DiskTier, RamTier
from pipeline.descriptors import AvgPool
from pipeline.retrieval import Retrieval
from utils.errors import UserError
from wan.params import WanParams

PARAMS = WanParams(dim=24, num_heads=2, num_layers=2)
TOKENS = 2
FRAME = (2, PARAMS.num_layers, TOKENS, PARAMS.num_heads, PARAMS.head_dim)
BATCH = 2


def tiered(*slots: int, dtype: torch.dtype = torch.float32, **limits) -> Bank:
    tiers = [RamTier(f"tier {i}", count) for i, count in enumerate(slots)]
    return Bank(tiers, Plain(dtype), **limits)


def an_index() -> Retrieval:
    return Retrieval(AvgPool().load((1, 1, 1), "cpu"))


def frame_kv(frame: int, batch: int = BATCH) -> torch.Tensor:
    return torch.randn(1, batch, *FRAME, generator=torch.Generator().manual_seed(frame))


@given(st.lists(st.integers(0, 19), max_size=60), st.integers(1, 4), st.integers(0, 4))
def test_frames_come_back_as_they_were_from_whichever_tier(uses, first, second):
    memory = tiered(first, second, 20)
    frames = {frame: frame_kv(frame) for frame in range(20)}
    for frame, kv in frames.items():
        memory.put([frame], kv)
    out = torch.empty(FRAME)
    for frame in uses:
        memory.fetch(frame, frame % BATCH, out)
        assert torch.equal(out, frames[frame][0, frame % BATCH])
        assert frame in memory.slots[0], "a retrieved frame comes up"
    assert sum(map(len, memory.slots)) == 20 and sum(memory.tier_bytes.values()) == 20 * frames[0].nbytes
    assert all(len(slots) <= tier.slots for slots, tier in zip(memory.slots, memory.tiers, strict=True))


def test_slabs_hold_a_tiers_slots_and_no_more(monkeypatch):
    monkeypatch.setattr("pipeline.bank.tiers.SLAB_BYTES", 1000)
    tier, records = RamTier("host", 7), torch.arange(300, dtype=torch.uint8).view(2, 150)
    for slot in range(7):
        tier.write(slot, records + slot)
    assert [len(slab) for slab in tier.slabs.values()] == [3, 3, 1]
    assert all(torch.equal(tier.read(slot), records + slot) for slot in range(7))


def test_the_disk_tier_keeps_frames_and_leaves_no_file(tmp_path):
    memory = build_bank(
        BankSettings(host_gb=2.5 * frame_kv(0).nbytes / 1e9, disk_gb=1e-3, disk_folder=str(tmp_path)),
        an_index(), (BATCH, *FRAME), 30,
    )  # fmt: skip
    assert [(tier.name, tier.slots) for tier in memory.tiers] == [("host", 2), ("disk", 28)]
    for frame in range(30):
        memory.put([frame], frame_kv(frame))
    assert list(tmp_path.iterdir()) == [], "the file has no name, so a killed run leaves none"
    out = torch.empty(FRAME)
    for frame in (0, 29, 7, 0):
        memory.fetch(frame, 1, out)
        assert torch.equal(out, frame_kv(frame)[0, 1])


def test_a_killed_process_leaves_nothing_on_disk(tmp_path):
    script = (
        "import sys, torch\nfrom pipeline.bank.tiers import DiskTier\n"
        f"tier = DiskTier(4, (1, 1000), {str(tmp_path)!r})\ntier.write(0, torch.zeros(1, 1000, dtype=torch.uint8))\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_named_before_the_run(tmp_path):
    with pytest.raises(UserError, match=r"bank\.disk_folder .* cannot hold"):
        DiskTier(1 << 20, (1, 1 << 40), str(tmp_path))
    with pytest.raises(UserError, match="No such file"):
        DiskTier(1, (1, 10), str(tmp_path / "missing"))


def test_a_disk_that_fails_during_the_run_is_an_error_and_no_wrong_frame(tmp_path):
    tier = DiskTier(2, (1, 1000), str(tmp_path))
    tier.write(1, torch.ones(1, 1000, dtype=torch.uint8))
    os.ftruncate(tier.file.fileno(), 500)
    with pytest.raises(UserError, match="shorter than it was"):
        tier.read(1)


def test_budgets_too_small_for_the_run_are_refused_before_it():
    size = frame_kv(0).nbytes / 1e9
    with pytest.raises(UserError, match=r"hold 0 \+ 3 \+ 0 latent frames .* keeps 10"):
        build_bank(BankSettings(host_gb=3.5 * size), Retrieval(AvgPool().load((1, 1, 1), "cpu")), (BATCH, *FRAME), 10)
    build_bank(
        BankSettings(host_gb=3.5 * size, capacity=3), Retrieval(AvgPool().load((1, 1, 1), "cpu")), (BATCH, *FRAME), 10
    )


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_numbers_stay_within_the_bound_of_their_type(storage, dtype):
    kv = frame_kv(3, batch=1)[0, 0].mul(torch.tensor([0.01, 30.0]).view(1, 1, 1, 2, 1)).to(dtype)
    codec = build_codec(storage, dtype)
    record = codec.encode(kv)
    assert record.numel() == codec.record_bytes(kv.shape) and record.dtype == torch.uint8
    out = torch.empty_like(kv)
    codec.decode(record, out)
    largest = kv.float().abs().amax(dim=(-3, -1), keepdim=True)
    error = (out.float() - kv.float()).abs()
    own = 2.0**-8 * kv.float().abs() if dtype == torch.bfloat16 else 0.0  # rounding of the model's own type
    bound = {
        "same": torch.zeros(()),
        "bfloat16": 2.0**-8 * kv.float().abs(),
        "fp8": 2.0**-4 * kv.float().abs() + largest * 2.0**-9 / 448,
        "int8": largest / 254,
    }[storage]
    slack = 0.0 if storage == "same" or (storage == "bfloat16" and dtype == storage) else own
    assert (error <= bound + slack + 1e-6 * largest).all()


def test_zeros_survive_scaled_storage():
    for storage in ("fp8", "int8"):
        out = torch.ones(FRAME)
        codec = build_codec(storage, torch.float32)
        codec.decode(codec.encode(torch.zeros(FRAME)), out)
        assert torch.equal(out, torch.zeros(FRAME))


class Index:
    """Stands for the retrieval index: frames 4 and 5 are similar."""

    def __init__(self):
        self.dropped = []

    def most_similar_pair(self, frames):
        return (5, 4) if {4, 5} <= set(frames) else (frames[-1], frames[0])

    def drop(self, frame):
        self.dropped.append(frame)


@pytest.mark.parametrize("rule", EVICTIONS)
def test_a_bounded_bank_holds_its_capacity_and_forgets_the_rest(rule):
    index = Index()
    bank = tiered(4, 100, capacity=6, rule=EVICTIONS[rule], index=index)
    for frame in range(1, 31):
        bank.put([frame], frame_kv(frame))
        assert len(bank.frames) == min(frame, 6) and all(kept in bank for kept in bank.frames)
    assert sorted([*bank.frames, *index.dropped]) == list(range(1, 31))
    assert not any(frame in bank for frame in index.dropped)
    assert bank.tier_bytes == {"tier 0": 4 * frame_kv(0).nbytes, "tier 1": 2 * frame_kv(0).nbytes}
    out = torch.empty(FRAME)
    for frame in bank.frames:
        bank.fetch(frame, 0, out)
        assert torch.equal(out, frame_kv(frame)[0, 0])


def pair_by_comparing_all(index: Retrieval, frames: list[int]) -> tuple[int, int]:
    """Every frame against every other one, each time."""
    vectors = index.vectors(frames).double()
    similarity = torch.einsum("n b d, m b d -> n m", vectors, vectors).float()
    return max(combinations(range(len(frames)), 2), key=lambda pair: similarity[pair].item())


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(2, 12), st.booleans())
def test_the_most_similar_pair_frames_are_those_that_comparing_all_of_them_finds(seed, capacity, frozen):
    """A full bank that drops by redundancy, where a frozen video makes many frames exactly similar."""
    generator = torch.Generator().manual_seed(seed)
    index, held = Retrieval(lambda latents: latents.flatten(2)), []
    for frame in range(60):
        latents = torch.randn(2, 1, 1, 1, 3, generator=generator)
        index.add(latents.round() if frozen else latents)
        held.append(frame)
        if len(held) > capacity:
            first = held[pair_by_comparing_all(index, held)[0]]
            assert min(index.most_similar_pair(held)) == first
            gone = first if frame % 5 else held[frame % len(held)]  # other rules may drop any frame
            index.drop(gone)
            held.remove(gone)


def test_rules_drop_what_they_say():
    bank = BankState(kept=[3, 4, 5, 9], new=10, seen=10, most_similar_pair=Index().most_similar_pair)
    assert EVICTIONS["fifo"](bank) == 3
    assert EVICTIONS["redundancy"](bank) == 4
    assert EVICTIONS["reservoir"](bank) in {3, 4, 5, 9, 10}


def test_a_reservoir_keeps_every_frame_with_the_same_chance():
    """200 frames, 50 kept: of each fifth of the past about the same number is left."""
    kept = []
    for offset in range(40):
        held: list[int] = []
        for seen in range(1, 201):
            new = offset * 1000 + seen
            victim = (
                EVICTIONS["reservoir"](BankState(held, new, seen, lambda frames: (0, 0))) if len(held) == 50 else None
            )
            held = [frame for frame in (*held, new) if frame != victim]
        kept += [frame % 1000 for frame in held]
    counts = [sum(lo < frame <= lo + 40 for frame in kept) for lo in range(0, 200, 40)]
    assert sum(counts) == 2000 and min(counts) > 320 and max(counts) < 480


def test_dropped_frames_are_never_selected_and_their_rows_are_used_again():
    index = Retrieval(lambda latents: latents.flatten(2))
    generator = torch.Generator().manual_seed(0)
    for block in range(100):
        index.add(torch.randn(1, 3, 1, 1, 8, generator=generator))
        for frame in range(max(3 * block - 60, 0), max(3 * block - 57, 0)):
            index.drop(frame)
    assert len(index.table) == 64 and len(index.rows) <= 64
    with pytest.raises(KeyError):
        index.select([0], 1, [Random(0)])
