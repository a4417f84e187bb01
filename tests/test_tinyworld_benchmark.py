"""The oracle memory changes the context alone; the benchmark resumes, and refuses what is not its own."""

import json
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool3d

from pipeline import context, load, policies, selection
from pipeline.bank.codec import build_codec
from pipeline.bank.tiers import RamTier
from pipeline.config import load_config
from pipeline.preflight import preflight
from pipeline.samples import Sample
from pipeline.selection import SELECTIONS
from tests.miniature import make_family
from tinyworld import benchmark, changed, oracle_memory, places, report
from tinyworld.judging.latent_errors import latent_errors, uncovered
from tinyworld.world.change import move_an_object
from tinyworld.world.film import held_out
from utils.errors import UserError
from utils.files import write_json


def test_the_oracle_memory_retrieves_by_the_cameras_truth_and_the_other_scene_is_the_neighbours():
    camera = np.stack([8 * np.arange(24), 8 * np.arange(24)[::-1]])
    for rule, frames in (("near", (20, 19)), ("far", (1, 2)), ("none", ())):
        retrieval = places.TruePlaces(camera, rule, block=3)
        retrieval.add(torch.zeros(2, 21, 1, 1, 1))
        assert retrieval.select(range(1, 21), 2, [Random(0)] * 2).frames[0] == frames
    codec = build_codec("same", torch.float32)
    memory = places.NextSample([RamTier("host", 4)], codec, batch=2)
    kv = torch.randn(1, 2, 2, 1, 3, 1, 4)
    memory.put([7], kv)
    out = torch.empty(2, 1, 3, 1, 4)
    for sample in (0, 1):
        memory.fetch(7, sample, out)
        assert torch.equal(out, kv[0, 1 - sample])


def test_new_columns_are_those_that_the_camera_uncovers():
    new = uncovered(np.array([[88, 80, 72], [104, 112, 120]]), np.array([96, 96]))
    assert new.sum(-1).tolist() == [[1, 2, 3], [1, 2, 3]]
    assert new[0, 2, :3].all() and new[1, 2, -3:].all()


def test_errors_in_the_subjects_lane_do_not_count_as_errors_of_new_columns():
    truth, camera = torch.zeros(1, 6, 1, 8, 12), np.array([[0, 8, 16, 24, 32, 40]])
    made = truth[:, 3:].clone()
    made[..., 6:, :] = 1
    whole, new = latent_errors({3: made}, truth, camera)
    assert (whole, new) == (0.25, 0)


def told(weights: dict, folder) -> list[str]:
    return [
        f"model_root={weights['model_root']}", f"generator_ckpt={weights['generator_ckpt']}",
        "steps=[1000]", "prompts=2", "samples=1", "frames=18", "batch=1", f"folder={folder}",
    ]  # fmt: skip


BASE = "model_name: miniature\ngenerator_ckpt: x\nheight: 64\nwidth: 96\ntext_cache: null\n"
MEMORY = "{use_latentmem: true, memory_size: 2, recent_exclude: 0, local_attn_size: 9}"


def test_the_conditions_differ_in_the_memory_that_the_model_sees(tmp_path):
    weights = make_family(tmp_path)
    (tmp_path / "memory.yaml").write_text(f"{BASE}model_kwargs: {MEMORY}\n")
    settings = oracle_memory.OracleSettings(
        config=str(tmp_path / "memory.yaml"),
        model_root=weights["model_root"],
        generator_ckpt=weights["generator_ckpt"],
        steps=[1000, 500],
        clips=2,
        first=15,
        frames=18,
        batch=2,
    )
    errors = oracle_memory.measure_errors(settings, lambda line: None)
    whole = [tuple(errors[condition]["whole view"].values()) for condition in oracle_memory.CONDITIONS]
    assert len(set(whole)) == len(oracle_memory.CONDITIONS)
    assert "| true place - other scene |" in oracle_memory.table(*oracle_memory.summary(errors))
    assert oracle_memory.measure_errors(settings, lambda line: None) == errors


def test_a_memory_of_a_changed_world_is_of_before_or_since_and_what_follows_it_is_told_apart():
    camera = np.tile(np.abs((8 * np.arange(60) + 192) % 384 - 192), (2, 1))
    views = changed.Views(camera, "the view since", block=3, change=np.array([24, 30]))
    views.add(torch.zeros(2, 54, 1, 1, 1))
    since = views.select(range(1, 48), 2, [Random(0)] * 2)
    views.rule = "the view before the change"
    before = views.select(range(1, 48), 2, [Random(0)] * 2)
    for sample, change in enumerate(views.change):
        assert min(since.frames[sample]) >= change > max(before.frames[sample])
    clips = [move_an_object(held_out(index, 460)) for index in range(2)]
    camera = np.stack([clip.camera[::4] for clip in clips])
    truth = torch.zeros(2, 114, 1, 8, 12)
    made = {}
    for start in range(84, 114, 3):
        made[start] = torch.ones(2, 3, 1, 8, 12)
        made[start][..., 6:, :] = 9  # the animal's lane
    assert changed.errors_where_it_moved(made, truth, camera, clips).tolist() == [1, 1]
    assert np.isnan(changed.errors_where_it_moved({84: made[84]}, truth, np.zeros((2, 114)), clips)).all()
    pairs = {"none": {0: (1.0, 2.0), 1: (3.0, 2.0)}, "most similar": {0: (1.0, 2.0), 1: (1.0, 2.0)}}
    assert "| none | 2.000 | 2.000 | 0.50 |" in changed.table(pairs)
    assert "| most similar | 1.000 | 2.000 | 1.00 |" in changed.table(pairs)


def test_what_a_changed_world_is_sampled_after_differs_in_the_memory(tmp_path, monkeypatch):
    weights = make_family(tmp_path)
    (tmp_path / "memory.yaml").write_text(f"{BASE}model_kwargs: {MEMORY}\n")

    def pooled(vae: torch.nn.Module, videos: torch.Tensor) -> torch.Tensor:
        return adaptive_avg_pool3d(videos[:, ::4], (None, 8, 12)).repeat(1, 1, 6, 1, 1)[:, :, :16]

    monkeypatch.setattr(changed, "encode", pooled)
    settings = changed.ChangedSettings(
        config=str(tmp_path / "memory.yaml"), model_root=weights["model_root"], steps=[1000, 500],
        generator_ckpt=weights["generator_ckpt"], clips=2, batch=2, first=99,
    )  # fmt: skip
    errors = changed.measure(settings)
    assert set(errors) == set(changed.MEMORIES)
    assert len({tuple(found.values()) for found in errors.values()}) == len(changed.MEMORIES)


def test_an_own_track_is_the_cameras_way_and_finds_the_place_where_it_leads():
    clips = [held_out(index, 24 * 4 - 3) for index in range(2)]
    videos = torch.from_numpy(np.stack([clip.video for clip in clips])).movedim(-1, 2) / 127.5 - 1  # [B, T, 3, H, W]
    shown = iter([videos[:, :9], *videos[:, 9:].split(12, 1)])
    track = places.OwnTrack(lambda latents: next(shown), "near", block=3)
    for _ in range(7):
        track.add(torch.zeros(2, 3, 1, 1, 1))
    camera = np.stack([clip.camera[::4] for clip in clips])
    positions = np.stack(track.positions, 1)
    assert (positions == camera[:, :21] - camera[:, :1]).all()
    leads_to = positions[:, -1] + (positions[:, -1] - positions[:, -3])  # two frames on, the middle of the block
    for rule, picked in (("near", np.argmin), ("far", np.argmax)):
        track.rule = rule
        found = track.select(range(1, 12), 3, [Random(0)] * 2)
        assert found.block_start == 21
        for sample, frames in enumerate(found.frames):
            assert len(set(frames)) == 3
            assert frames[0] == 1 + picked(np.abs(positions[sample, 1:12] - leads_to[sample]))
    track.at_hand = 12
    assert max(track.select(range(1, 12), 9, [Random(0)] * 2).frames[0]) == 8


def test_a_row_can_hold_the_place_that_comes_the_farthest_or_another_scenes(tmp_path):
    config = {**make_family(tmp_path), "height": 64, "width": 96, "num_output_frames": 18}
    config["denoising_step_list"] = [1000]
    config["model_kwargs"] = {"use_latentmem": True, "memory_size": 2, "recent_exclude": 0, "local_attn_size": 9}
    (tmp_path / "base.yaml").write_text(BASE)
    plain = load(tmp_path / "base.yaml", **config)
    samples = [Sample(held_out(index).caption, index, 0) for index in range(2)]
    last = {}
    for name in places.MEMORIES:
        blocks = list(places.bounding(plain, name).blocks(samples))
        assert {len(frames) for frames in blocks[-1].selection.frames} == {2}
        last[name] = blocks[-1].latents
        assert blocks[2].latents.isfinite().all()
    assert not last["oracle"].equal(last["wrong_place"])
    assert not last["oracle"].equal(last["other_scene"])
    row = {"config": str(tmp_path / "base.yaml"), "overrides": {"model_kwargs": config["model_kwargs"]}}
    settings = dict(generator_ckpt=config["generator_ckpt"], model_root=config["model_root"], prompts=3, batch=2)
    with pytest.raises(UserError, match="row 'x' takes its memory from the next video of the batch"):
        benchmark.require_partners(
            benchmark.BenchmarkSettings(rows={"x": benchmark.Row(**row, holds="other_scene")}, **settings)
        )
    with pytest.raises(UserError, match=r"rows.x.holds' is 'orcale'.*did you mean 'oracle'"):
        benchmark.BenchmarkSettings(rows={"x": benchmark.Row(**row, holds="orcale")}, **settings)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A benchmark of two rows over miniature weights; gives its arguments."""
    weights = make_family(tmp_path)
    base = tmp_path / "base.yaml"
    base.write_text(BASE)
    config = tmp_path / "benchmark.yaml"
    config.write_text(
        f"rows:\n  plain: {{config: {base}}}\n"
        f"  memory: {{config: {base}, overrides: {{model_kwargs: {MEMORY}}}}}\n"
        "comparisons:\n  what memory changes: [plain, memory]\n"
        "hypotheses:\n  memory helps:\n    - {baseline: plain, row: memory, metric: drift}\n"
    )
    monkeypatch.setattr(benchmark, "CONFIG", str(config))
    return told(weights, tmp_path / "results"), tmp_path / "results"


def start(monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    benchmark.main()


def test_a_benchmark_is_measured_once_resumed_past_damaged_files_and_compared(rows, monkeypatch, capsys):
    arguments, folder = rows
    start(monkeypatch, arguments)
    printed = capsys.readouterr().out
    assert "| memory - plain | drift |" in printed and "the smallest difference that n captions show" in printed
    assert "| memory - plain |" in printed and "| true videos |" in printed
    table = json.loads((folder / "table.json").read_text())
    assert table["rows"]["memory"]["drift"]["n"] == 2
    assert (folder / "benchmark.png").stat().st_size > 1000

    kept, lost = folder / "plain" / "00000-0.json", folder / "plain" / "00001-0.json"
    write_json(kept, {**json.loads(kept.read_text()), "drift": 7.0})  # would be written anew if it were made again
    before = lost.read_text()
    lost.unlink()
    damaged = folder / "memory" / "00001-0.json"
    whole = damaged.read_text()
    damaged.write_text(whole[: len(whole) // 2])
    (folder / "plain" / "row.json").write_text("{")
    (folder / "memory" / "row.json").unlink()
    capsys.readouterr()
    start(monkeypatch, arguments)
    assert f"note: {damaged} is damaged" in capsys.readouterr().out
    assert json.loads(kept.read_text())["drift"] == 7
    assert (lost.read_text(), damaged.read_text()) == (before, whole)
    for row in ("plain", "memory"):
        assert json.loads((folder / row / "row.json").read_text())["seed"] == 0


def test_results_of_other_weights_or_settings_are_not_mixed_in(rows, monkeypatch):
    arguments, folder = rows
    start(monkeypatch, [*arguments, "only=[plain]", "prompts=1"])
    weights = next(value.partition("=")[2] for value in arguments if value.startswith("generator_ckpt"))
    with open(weights, "r+b") as file:  # one weight changes
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(UserError, match=r"other weights, settings or code \(generator_ckpt\); delete") as error:
        start(monkeypatch, [*arguments, "only=[plain]"])
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"truth holds results of other .* \(frames\)"):
        start(monkeypatch, [*arguments, "only=[plain]", "frames=21"])


def test_a_refused_run_leaves_nothing_that_could_refuse_the_right_one(rows, monkeypatch):
    arguments, folder = rows
    weights = next(value for value in arguments if value.startswith("generator_ckpt"))
    for wrong in (["frames=17"], [f"{weights}x", "frames=12"], ["only=[plian]"], ["seed=-1"], ["batch=0"]):
        with pytest.raises(UserError):
            start(monkeypatch, [*arguments, *wrong])
        assert not folder.exists()
    config = Path(benchmark.CONFIG)
    right = config.read_text()
    config.write_text(right.replace("memory_size: 2", "memory_size: 20"))
    with pytest.raises(UserError, match="memory_size"):
        start(monkeypatch, [*arguments, "frames=12"])
    config.write_text(right)
    start(monkeypatch, [*arguments, "only=[plain]", "prompts=1"])
    assert len(list((folder / "plain").glob("[0-9]*.json"))) == 1


def test_a_rows_identity_is_its_bank_the_resolved_type_and_the_code_of_its_rules_but_no_budget(tmp_path, monkeypatch):
    base = tmp_path / "base.yaml"
    base.write_text(BASE)
    kwargs = {"use_latentmem": True, "memory_size": 2, "recent_exclude": 0, "local_attn_size": 9}
    told = dict(make_family(tmp_path), model_kwargs=kwargs, device="cpu")

    def identity(**overrides) -> dict:
        return benchmark.identity(preflight(load_config(base, {**told, **overrides})))

    plain = identity()
    assert (plain["device"], plain["dtype"]) == ("cpu", "float32")
    assert identity(bank={"host_gb": 3.0, "disk_gb": 1.0, "disk_folder": str(tmp_path)}) == plain
    assert identity(bank={"capacity": 4}) != plain != identity(dtype="bfloat16")
    monkeypatch.setitem(SELECTIONS, "similarity", lambda similarities, frames, k, rng: [0])
    edited = identity()
    assert {key for key in edited["code"] if edited["code"][key] != plain["code"][key]} == {"selection"}


@pytest.mark.parametrize(
    "wrong", [{"first": 51}, {"first": 0}, {"clips": 17}, {"config": "configs/tinyworld_native.yaml"}]
)
def test_an_oracle_memory_that_would_measure_nothing_is_refused_in_one_line(wrong):
    with pytest.raises(UserError) as error:
        oracle_memory.OracleSettings(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"long_clips": 0}, {"recall_first": 51}])
def test_a_report_of_nothing_is_refused_before_it_starts(wrong):
    with pytest.raises(UserError):
        report.ReportSettings(**wrong)


def test_the_examples_of_the_docs_work(monkeypatch):
    rule, policy = re.findall(r"```python\n(.*?)```", Path("docs/benchmark.md").read_text(), re.DOTALL)
    names = {**vars(selection), "SELECTIONS": {}}
    exec(rule, names)
    similarities = [i / 11 for i in range(12)]
    assert names["SELECTIONS"]["spread"](similarities, range(12), 5, Random(0)) == [11, 9, 7, 5, 3]
    names = vars(policies).copy()
    exec(policy, names)
    monkeypatch.setitem(policies.POLICIES, "every_second", names["EverySecond"])
    pipe = load("configs/tinyworld_native.yaml", num_output_frames=36, model_kwargs={"policy": "every_second"})
    blocks = list(pipe.blocks(held_out(0, 1).caption))
    assert blocks[-1].plan.frames(context.LOCAL) == tuple(range(6, 33, 2))
    assert all(block.latents.isfinite().all() for block in blocks)
