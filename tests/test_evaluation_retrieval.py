"""Judging retrieval rules: the figures by hand, and the command as a user runs it."""

import json
import math
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from evaluation.compare.statistics import Estimate, estimate, estimate_crossed
from evaluation.retrieval import __main__ as command
from evaluation.retrieval.clips import Views, read_views
from evaluation.retrieval.engine import Block, blocks_with_a_choice, load_average, make_policy, replay
from evaluation.retrieval.judge import Rule, judge, mean_without_nan
from evaluation.retrieval.measures import METRICS, Clip, similarity_by_distance
from pipeline.retrieval import Retrieval
from utils.errors import UserError, run

GOLDENS = Path(__file__).parent / "goldens"


def policy(memory: int = 6):
    return make_policy(window=12, sink=1, memory=memory, exclude=5, block=3)


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
    blocks = blocks_with_a_choice(policy(), 30)
    assert [block.frames for block in blocks] == [range(24, 27), range(27, 30)]
    assert [block.candidates for block in blocks] == [range(1, 8), range(1, 11)]
    assert blocks[0].attended == (0, 22, 23)  # the sink, and what memory leaves of the window
    assert blocks_with_a_choice(policy(), 26) == []


def test_what_is_replayed_is_what_the_engine_retrieves():
    latents = torch.randn(1, 66, 16, 4, 6)
    engine = Retrieval(load_average())
    descriptors = load_average()(latents)[0]
    blocks = blocks_with_a_choice(policy(), 66)
    done = 0
    for block, frames in zip(blocks, replay(descriptors, blocks, "similarity", ""), strict=True):
        engine.add(latents[:, done : block.frames.start])
        done = block.frames.start
        assert engine.select(block.candidates, 6, [Random(0)]).frames[0] == frames


def test_views_count_shared_positions():
    shown = Views((0.0, 6.0, 12.0, 30.0), view=12).shown()
    shared = (shown.float() @ shown.float().T) / shown.sum(1)
    assert shared[0].tolist() == [1, 0.5, 0, 0]
    closed = Views((0.0, 30.0), view=12, loop=36).shown()
    # of 64 positions in a view, one more or less lies on the edge
    assert (closed[0] & closed[1]).sum() / 64 == pytest.approx(0.5, abs=1 / 64)


def test_the_figures_of_a_block_by_hand():
    # A scene of three places: the past shows A (1-3), B (4-6) and C (7); the block at 24 shows A again, after C.
    places = [0, *[0] * 3, *[1] * 3, *[2] * 17, *[0] * 3]
    latents = (
        torch.nn.functional.one_hot(torch.tensor(places), 16).float()[:, :, None, None] + torch.rand(27, 16, 1, 1) / 100
    )
    latents[0] += 50  # the sink looks at something else
    views = Views((99.0, *(12.0 * place for place in places[1:])), view=12)
    clip = Clip(latents, views)
    block = blocks_with_a_choice(policy(3), 27)[-1]
    assert (block.frames, block.candidates, block.attended[0]) == (range(24, 27), range(1, 8), 0)
    values = dict(zip(METRICS, clip.judge(block, [1, 2, 4]), strict=True))
    # shares of a few numbers, in float32: right to approx's 1e-6
    assert values["hit"] == pytest.approx(2 / 3)
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["recall"] == pytest.approx(2 / 3)
    assert values["recovered"] == 1
    assert values["spread"] == pytest.approx((1 + 3 + 2) / 3)
    values = dict(zip(METRICS, clip.judge(block, [4, 5, 6]), strict=True))
    assert [values[name] for name in ("hit", "precision", "recall", "recovered")] == [0, 0, 0, 0]
    assert values["redundancy"] > 0.9
    assert math.isnan(Clip(latents).judge(block, [1, 2, 4])[1])


def test_one_retrieved_frame_is_judged_too():
    latents = torch.randn(27, 16, 1, 1)
    values = dict(zip(METRICS, Clip(latents).judge(Block(range(24, 27), range(1, 8), (0,), 1), [3]), strict=True))
    assert values["spread"] == 0
    # The cosine of a float32 vector of 16 numbers with itself: 16 products and sums, each right to 6e-8.
    assert values["redundancy"] == pytest.approx(1, abs=1e-6)


def test_similarity_is_averaged_over_frames_equally_far_apart():
    angles = torch.arange(9) / 10  # descriptors that turn at a steady pace
    curve = similarity_by_distance(torch.stack([angles.cos(), angles.sin()], dim=1))
    # float32 cosines of numbers up to 1: two squares, a root and a division, each right to 6e-8.
    torch.testing.assert_close(curve, (torch.arange(1, 9) / 10).cos(), rtol=1e-6, atol=1e-6)


def test_an_interval_over_clips_alone_is_the_usual_one():
    values = np.random.default_rng(0).normal(size=40)
    crossed = estimate_crossed(values[None])
    usual = estimate(values)
    # The mean of 40 float64 numbers near 1, summed in another order.
    assert crossed.mean == pytest.approx(usual.mean, rel=1e-12)
    # Other draws: the ends of 10,000 draws' interval vary by 2% of its width, so 10% is five times that.
    width = usual.high - usual.low
    assert (crossed.low, crossed.high) == pytest.approx((usual.low, usual.high), abs=0.1 * width)
    assert crossed == estimate_crossed(values[None])


def test_an_interval_tells_how_much_seeds_and_clips_differ():
    values = np.random.default_rng(0).normal(size=(3, 40))

    def width(x):
        interval = estimate_crossed(x)
        assert interval.low < interval.mean < interval.high
        return interval.high - interval.low

    assert width(values) < width(values[:, :10])
    apart = values + np.array([[-3.0], [0.0], [3.0]])
    assert width(apart) > 2 * width(values)


def test_what_no_clip_tells_has_no_mean_and_few_clips_no_interval():
    values = np.array([[1.0, np.nan, 3.0, np.nan]])
    assert estimate_crossed(values) == Estimate(2.0, None, None, 2)
    assert estimate_crossed(values[:, 1::2]) is None
    assert mean_without_nan(values[:, :2], axis=0).tolist()[0] == 1


def test_the_random_rule_is_a_fair_draw():
    blocks = [Block(range(9, 12), range(9), (), 3)]
    counts = [0] * 9
    draws = 500
    for seed in range(draws):
        (frames,) = replay(torch.zeros(10, 4), blocks, "random", f"{seed}")
        assert len(set(frames)) == 3
        for frame in frames:
            counts[frame] += 1
    assert replay(torch.zeros(10, 4), blocks, "random", "0") == replay(torch.zeros(10, 4), blocks, "random", "0")
    # Each count is binomial, 500 draws with chance 1/3: 10.5 is its standard deviation, and the draws are fixed.
    assert max(abs(count - draws / 3) for count in counts) < 4 * 10.5


def test_a_rule_that_knows_the_place_beats_one_that_does_not(clips):
    def knows(latents):
        return latents[:, :, :2, 0, 0]

    average = load_average()
    rules = [Rule("random", [average], "random"), Rule("avg_pool", [average]), Rule("knows", [knows])]
    report = judge(rules, sorted(clips.glob("*.pt")), policy(), 0.75, "cpu")
    assert (report["clips"], report["blocks"]) == (3, 42)
    metrics = {name: rule["metrics"] for name, rule in report["rules"].items()}
    assert metrics["random"]["recall"][0] < 0.6 < metrics["knows"]["recall"][0]
    assert report["rules"]["avg_pool"]["gain_over_avg_pool"]["hit"] == [0, 0, 0]
    # ten shares, summed: right to approx's 1e-6
    assert sum(report["rules"]["random"]["retrieved_from_tenth_of_past"]) == pytest.approx(1)


def judged(arguments: list, monkeypatch) -> int:
    """Run the entry point in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["evaluation.retrieval", *map(str, arguments)])
    try:
        run(command.main)
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_writes_a_table_a_plot_and_json(clips, monkeypatch, capsys, tmp_path):
    seeds = [GOLDENS / "ae_ckpt.pt", GOLDENS / "ae_ckpt_init.pt"]
    arguments = ["--data", clips, "--ckpt", *seeds, f"untrained={seeds[1]}", "--out", tmp_path / "out"]
    assert judged(arguments, monkeypatch) == 0
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
    assert judged(["--data", clips, "--out", tmp_path / "out"], monkeypatch) == 0
    out = capsys.readouterr().out
    assert "precision" not in out
    assert "redundancy" in out


def test_files_that_an_encoder_was_trained_on_are_left_out(clips, monkeypatch, capsys, tmp_path):
    content = torch.load(GOLDENS / "ae_ckpt.pt", weights_only=True)
    names = sorted(path.name for path in clips.glob("*.pt"))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models/ae.pt"
    torch.save(content | {"files": {"train": names[:2], "val": names[2:]}}, path)
    assert judged(["--data", clips, "--ckpt", path, "--out", tmp_path / "out"], monkeypatch) == 0
    assert "1 clips" in capsys.readouterr().out
    torch.save(content | {"files": {"train": names, "val": []}}, path)
    assert judged(["--data", clips, "--ckpt", path, "--out", tmp_path / "out"], monkeypatch) == 2
    assert "--all" in capsys.readouterr().err
    assert judged(["--data", clips, "--ckpt", path, "--all", "--out", tmp_path / "out"], monkeypatch) == 0
    assert "3 clips" in capsys.readouterr().out


def test_bad_input_is_one_line_and_status_2(clips, monkeypatch, capsys, tmp_path):
    short = tmp_path / "short"
    short.mkdir()
    torch.save(torch.zeros(20, 16, 8, 12), short / "latent_000000.pt")
    for arguments, message in (
        (["--data", tmp_path / "none"], "is not a folder"),
        (["--data", short], "the longest clip has 20 frames"),
        (["--data", clips, "--ckpt", "none.pt"], "none.pt does not exist"),
        (["--data", clips, "--ckpt", f"avg_pool={GOLDENS / 'ae_ckpt.pt'}"], "is named avg_pool"),
        (["--data", clips, "--seeds", "0"], "--seeds is 0"),
        (["--data", clips, "--memory", "0"], "--memory is 0"),
        (["--data", clips, "--overlap", "nan"], "--overlap is nan"),
        (["--data", clips, "--local", "6"], "memory_size can be at most 2"),
        (["--data", clips, "--device", "tpu"], "setting 'device' is 'tpu'"),
        (["--data", clips, "--sink", "x"], "invalid int value: 'x'"),
        ([], "--data"),
    ):
        assert judged([*arguments, "--out", tmp_path / "out"], monkeypatch) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1


def test_truth_that_does_not_fit_its_clip_is_refused(clips):
    path = clips / "latent_000000.pt"
    with pytest.raises(UserError, match=r"66 camera positions and .* 60 frames"):
        read_views(path, 60)
    for wrong in ('{"cam": []}', "[]", "{", '{"camera": [1, NaN], "view": 1}', '{"camera": [1, 2], "view": 0}'):
        path.with_suffix(".truth.json").write_text(wrong)
        with pytest.raises(UserError, match="not of the form"):
            read_views(path, 2)
