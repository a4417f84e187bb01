"""Judging retrieval rules: the figures by hand, and the command as a user runs it."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from ae import evaluate
from ae.judge import Noise, Rule, judge, read_views
from ae.metrics import METRICS, Clip, Views, bootstrap, choices, retrieve, similarity_by_distance
from pipeline.context import Layout, RetrievedMemory
from pipeline.retrieval import SELECTIONS, AvgPool, Retrieval
from utils.errors import UserError, run

GOLDENS = Path(__file__).parent / "goldens"


def policy(memory: int = 6) -> RetrievedMemory:
    return RetrievedMemory(Layout(window=12, sink=1, memory=memory, recent_exclude=5))


def pan(frames: int, seed: int = 0) -> tuple[torch.Tensor, dict]:
    """Latents [F, 16, 8, 12] of a camera that goes back and forth over a random scene, and its truth."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(16, 8, 36, generator=generator)
    angle = torch.arange(36) / 12
    scene[0], scene[1] = angle.cos(), angle.sin()  # two channels tell the place
    camera = [24 - abs(24 - (seed + t) % 48) for t in range(frames)]
    return torch.stack([scene[:, :, x : x + 12] for x in camera]), {"camera": camera, "view": 12, "loop": None}


@pytest.fixture
def clips(tmp_path):
    """A folder with three clips and their truth."""
    for i in range(3):
        latents, truth = pan(66, seed=i)
        torch.save(latents.bfloat16(), tmp_path / f"latent_{i:06d}.pt")
        (tmp_path / f"latent_{i:06d}.truth.json").write_text(json.dumps(truth))
    return tmp_path


def test_only_blocks_with_a_choice_are_judged():
    assert choices(policy(), 30) == [24, 27]
    assert choices(policy(), 26) == []


def test_retrieval_is_the_engines():
    latents = torch.randn(1, 30, 16, 4, 6)
    clip = Clip(latents[0], policy())
    engine = Retrieval(AvgPool())
    engine.add(latents[:, :24])
    selection = engine.select(policy().candidates(24), 6)
    start, frames = retrieve(AvgPool()(latents)[0], clip, SELECTIONS["similarity"])[0]
    assert (start, tuple(frames)) == (24, selection.frames[0])


def test_views_count_shared_positions():
    shown = Views((0.0, 6.0, 12.0, 30.0), view=12).shown()
    shared = (shown.float() @ shown.float().T) / shown.sum(1)
    assert shared[0].tolist() == [1, 0.5, 0, 0]
    closed = Views((0.0, 30.0), view=12, loop=36).shown()
    assert (closed[0] & closed[1]).sum() / 64 == pytest.approx(0.5, abs=0.02)


def test_the_figures_of_a_block_by_hand():
    # A scene of three places: the past shows A (1-3), B (4-6) and C (7); the block at 24 shows A again, after C.
    places = [0, *[0] * 3, *[1] * 3, *[2] * 17, *[0] * 3]
    latents = (
        torch.nn.functional.one_hot(torch.tensor(places), 16).float()[:, :, None, None] + torch.rand(27, 16, 1, 1) / 100
    )
    latents[0] += 50  # the sink looks at something else
    views = Views((99.0, *(12.0 * place for place in places[1:])), view=12)
    clip = Clip(latents, policy(3), views)
    assert clip.policy.plan(24).sink == (0,)
    values = dict(zip(METRICS, clip.judge(24, [1, 2, 4]), strict=True))
    assert values["hit"] == pytest.approx(2 / 3)
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["recall"] == pytest.approx(2 / 3)
    assert values["recovered"] == 1
    assert values["spread"] == pytest.approx((1 + 3 + 2) / 3)
    values = dict(zip(METRICS, clip.judge(24, [4, 5, 6]), strict=True))
    assert [values[name] for name in ("hit", "precision", "recall", "recovered")] == [0, 0, 0, 0]
    assert values["redundancy"] > 0.9
    assert math.isnan(Clip(latents, policy(3)).judge(24, [1, 2, 4])[1])


def test_similarity_is_averaged_over_frames_equally_far_apart():
    angles = torch.arange(9) / 10  # descriptors that turn at a steady pace
    curve = similarity_by_distance(torch.stack([angles.cos(), angles.sin()], dim=1))
    torch.testing.assert_close(curve, (torch.arange(1, 9) / 10).cos())


def test_intervals_hold_the_mean_and_narrow_with_more_clips():
    values = torch.randn(3, 40, 2, generator=torch.Generator().manual_seed(0))
    values[:, 0, 1] = torch.nan
    wide, narrow = (bootstrap(values[:, :n]).std(dim=0) for n in (10, 40))
    assert (narrow < wide).all()
    draws = bootstrap(values)
    assert torch.equal(draws, bootstrap(values))
    low, high = draws.quantile(torch.tensor([0.025, 0.975]), dim=0)
    means = values.nanmean(dim=(0, 1))
    assert ((low < means) & (means < high)).all()


def test_the_random_rule_is_a_fair_draw():
    drawn = [SELECTIONS["similarity"](d[:9] @ d[9], range(9), 3) for d in Noise(0)(torch.zeros(500, 10, 1))]
    counts = torch.tensor(drawn).flatten().bincount(minlength=9)
    assert (counts - 500 * 3 / 9).abs().max() < 45


def test_a_rule_that_knows_the_place_beats_one_that_does_not(clips):
    def knows(latents):
        return latents[:, :, :2, 0, 0]

    similarity = SELECTIONS["similarity"]
    rules = [Rule("random", [Noise(0)], similarity), Rule("avg_pool", [AvgPool()], similarity)]
    rules.append(Rule("knows", [knows], similarity))
    report = judge(rules, sorted(clips.glob("*.pt")), policy(), 0.75, "cpu")
    assert (report["clips"], report["blocks"]) == (3, 42)
    metrics = {name: rule["metrics"] for name, rule in report["rules"].items()}
    assert metrics["random"]["recall"][0] < 0.6 < metrics["knows"]["recall"][0]
    assert report["rules"]["avg_pool"]["gain_over_avg_pool"]["hit"] == [0, 0, 0]
    assert sum(report["rules"]["random"]["retrieved_from_tenth_of_past"]) == pytest.approx(1)


def evaluated(arguments: list, monkeypatch) -> int:
    """Run the entry point in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["ae.evaluate", *map(str, arguments)])
    try:
        run(evaluate.main)
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_writes_a_table_a_plot_and_json(clips, monkeypatch, capsys, tmp_path):
    seeds = [GOLDENS / "ae_ckpt.pt", GOLDENS / "ae_ckpt_init.pt"]
    arguments = ["--data", clips, "--ckpt", *seeds, f"untrained={seeds[1]}", "--out", tmp_path / "out"]
    assert evaluated(arguments, monkeypatch) == 0
    out = capsys.readouterr().out
    for row in ("| random | 3 |", "| recency | 1 |", "| AE+delta+smooth | 2 |", "| untrained | 1 |"):
        assert row in out
    assert "precision" in out
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    described = {"avg_pool", "AE+delta+smooth", "untrained"}
    around = {f"{name}, around" for name in described}
    assert set(report["rules"]) == {"random", "recency", "uniform", *described, *around}
    assert (tmp_path / "out/evaluation.png").stat().st_size > 1000


def test_without_truth_the_places_are_left_out_of_the_table(clips, monkeypatch, capsys, tmp_path):
    for truth in clips.glob("*.truth.json"):
        truth.unlink()
    assert evaluated(["--data", clips, "--out", tmp_path / "out"], monkeypatch) == 0
    out = capsys.readouterr().out
    assert "precision" not in out
    assert "redundancy" in out


def test_files_that_an_encoder_was_trained_on_are_left_out(clips, monkeypatch, capsys, tmp_path):
    content = torch.load(GOLDENS / "ae_ckpt.pt", weights_only=True)
    names = sorted(path.name for path in clips.glob("*.pt"))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models/ae.pt"
    torch.save(content | {"files": {"train": names[:2], "val": names[2:]}}, path)
    assert evaluated(["--data", clips, "--ckpt", path, "--out", tmp_path / "out"], monkeypatch) == 0
    assert "1 clips" in capsys.readouterr().out
    torch.save(content | {"files": {"train": names, "val": []}}, path)
    assert evaluated(["--data", clips, "--ckpt", path, "--out", tmp_path / "out"], monkeypatch) == 2
    assert "--all" in capsys.readouterr().err
    assert evaluated(["--data", clips, "--ckpt", path, "--all", "--out", tmp_path / "out"], monkeypatch) == 0
    assert "3 clips" in capsys.readouterr().out


def test_bad_input_is_one_line_and_status_2(clips, monkeypatch, capsys, tmp_path):
    short = tmp_path / "short"
    short.mkdir()
    torch.save(torch.zeros(20, 16, 8, 12), short / "latent_000000.pt")
    for arguments, message in (
        (["--data", tmp_path / "none"], "is not a folder"),
        (["--data", short], "the longest clip has 20 frames"),
        (["--data", clips, "--ckpt", "none.pt"], "none.pt does not exist"),
    ):
        assert evaluated([*arguments, "--out", tmp_path / "out"], monkeypatch) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1


def test_truth_that_does_not_fit_its_clip_is_refused(clips):
    path = clips / "latent_000000.pt"
    with pytest.raises(UserError, match=r"66 camera positions and .* 60 frames"):
        read_views(path, 60)
    path.with_suffix(".truth.json").write_text('{"cam": []}')
    with pytest.raises(UserError, match="not of the form"):
        read_views(path, 66)
