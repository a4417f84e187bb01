"""Folders of videos in, a report out: matching, statistics, bad input, and the page in a real browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.compare.statistics import (
    average_ranks,
    by_group,
    compare,
    estimate,
    holm,
    least_effect,
    ranks,
    sign_flip,
    units_needed,
)
from tests.test_evaluation import scene
from utils.video import VideoWriter

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FPS, FRAMES = 8, 33


def write(path: Path, video: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(path, (video.shape[2], video.shape[1]), FPS)
    writer.write(np.clip(video, 0, 255).round().astype(np.uint8))
    writer.close()
    return path


def write_record(path: Path, prompt: int, retrieved: list[int]) -> None:
    latents = (FRAMES - 1) // 4 + 1
    blocks = [
        {"start": start, "retrieved": retrieved if start == 6 else [], "similarities": [0.5, 0.9][: len(retrieved)]}
        for start in range(0, latents, 3)
    ]
    record = {"prompt": "a <b>red</b> ball & co", "prompt_index": prompt, "sample": 0, "frames": FRAMES}
    path.with_suffix(".json").write_text(json.dumps(record | {"config": {"num_output_frames": 9}, "blocks": blocks}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two methods of six prompts, of which the second one drifts, and every kind of bad input."""
    root = tmp_path_factory.mktemp("videos")
    drift = np.linspace(0, 60, FRAMES)[:, None, None, None]
    for prompt in range(6):
        clean = scene(FRAMES, seed=prompt)
        write_record(write(root / "good" / f"{prompt:05d}-0.mp4", clean), prompt, [0, 3])
        write(root / "bad" / f"{prompt:05d}-0.mp4", clean + drift)
    write(root / "good" / "00014-0.mp4", clean)  # without a partner
    write(root / "good" / "00015-0.mp4", clean)
    write(root / "bad" / "00015-0.mp4", clean[:20])  # shorter
    write(root / "good" / "00016-0.mp4", clean)
    write(root / "bad" / "00016-0.mp4", clean[:, :32])  # smaller
    whole = write(root / "good" / "00017-0.mp4", clean)
    (root / "bad" / "00017-0.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (root / "good" / "00018-0.mp4").write_text("no video")
    (root / "empty").mkdir()
    return root


def evaluate(*arguments: object, module: str = "evaluation", **environment: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", module, *map(str, arguments)]
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True)


@pytest.fixture(scope="module")
def report(folders):
    out = folders / "report"
    run = evaluate(folders / "good", folders / "bad", folders / "empty", "--out", out, "--workers", 1)
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


def test_bad_videos_are_named_and_counted_and_the_rest_is_compared(report):
    text, found, _ = report
    problems = {(Path(p["place"]).name, p["why"].partition(":")[0]) for p in found["problems"]}
    assert problems == {
        ("empty", "is a folder without videos"),
        ("00017-0.mp4", next(why for place, why in problems if place == "00017-0.mp4")),
        ("00018-0.mp4", "is not a readable video"),
        ("bad", "has no video of prompt 00014, sample 0"),
        ("bad", "has no video of prompt 00017, sample 0"),
        ("prompt 00015, sample 0", "lengths differ, not compared"),
        ("prompt 00016, sample 0", "sizes differ, compared with care"),
    }
    assert re.search(r"00017-0.mp4: (is truncated: \d+ of 33 frames|breaks off after|is not a readable)", text)
    assert "7 problems; the rest is evaluated" in text and "00018-0.mp4: is not a readable video: moov atom" in text
    assert [pair["prompt"] for pair in found["compared"]] == [*(f"{i:05d}" for i in range(6)), "00016"]


def test_the_better_method_wins_with_an_interval_and_a_test(report):
    text, found, _ = report
    good, bad = (found["methods"][name] for name in ("good", "bad"))
    assert good["means"]["drift"]["high"] < bad["means"]["drift"]["low"] and good["means"]["drift"]["n"] == 7
    assert good["average_rank"] < bad["average_rank"]
    (table,) = found["differences"]
    drift = table["metrics"]["drift"]
    assert (table["from"], table["to"]) == ("good", "bad") and drift["low"] > 0.05
    # Of 7 pairs, one differs in size alone; it may fall on either side, so the bound is a factor.
    assert drift["p"] == pytest.approx(2 / 2**6, rel=0.5)
    assert drift["p_holm"] >= drift["p"] and "bad - good" in text and "worse" in text


def test_every_video_is_in_the_json_with_its_curves(report):
    _, found, _ = report
    video = found["methods"]["bad"]["videos"][0]
    assert video["frames"] == FRAMES and video["size"] == [80, 48] and video["fps"] == FPS
    assert len(video["times"]) == 5 and all(len(curve) == 5 for curve in video["curves"].values())


class Page(HTMLParser):
    """Counts a page's tags and collects what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "input", "img"):
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "data-src", "href")]

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_its_videos_only(report, folders):
    text = report[2]
    page = Page(text)
    assert page.open == [] and page.tags.count("section") == 10 and page.tags.count("video") == 18
    assert page.tags.count("svg") == 10 * 8 + 8 and page.tags.count("table") == 2
    videos = [link for link in page.links if not link.startswith("data:image/jpeg")]
    assert len(videos) == 18 and all((folders / "report" / link).is_file() for link in videos)
    assert len(page.links) - len(videos) == 6 * 3  # a strip for each of six runs: a block and two frames
    assert "http:" not in text and "https:" not in text
    assert "a &lt;b&gt;red&lt;/b&gt; ball &amp; co" in text and "<b>red" not in text


def browse(page: Path, profile: Path) -> dict[str, int]:
    """What the page says of itself once headless Chromium has run it, without a network."""
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    words += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    body = re.search("<body[^>]*>", run.stdout)[0]
    return {name: int(value) for name, value in re.findall(r'data-(\w+)="(\d+)"', body)}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; the page is parsed in the test above")
@pytest.mark.parametrize("embed", [False, True], ids=["linked", "embedded"])
def test_the_page_runs_in_a_real_browser_without_errors(report, folders, tmp_path, embed):
    page = folders / "report" / "report.html"
    if embed:
        page = tmp_path / "report.html"
        run = evaluate(folders / "good" / "00000-0.mp4", folders / "bad" / "00000-0.mp4", "--out", tmp_path, "--embed")
        assert run.returncode == 0 and "00000-0.mp4" not in re.findall('data-src="[^"]{,40}', page.read_text())
    state = browse(page, tmp_path / "profile")
    assert state == {"errors": 0, "ready": 1, "players": 2, "loaded": 2, "unplayable": 0}


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "required: [NAME=]VIDEOS"),
        (["no/such/folder"], "no/such/folder does not exist"),
        (["{root}/empty"], "no videos (.mp4, .m4v"),
        (["{root}/good", "--workers", "0"], "--workers is 0"),
        (["{root}/good", "--worker", "x"], "--workers: invalid int value: 'x'"),
        (["{root}/good", "--seed", "-1"], "--seed is -1"),
        (["{root}/good", "--out", ""], "--out is empty"),
        (["{root}/good", "--out", "{root}/good/00018-0.mp4"], "00018-0.mp4 is a file"),
        (["{root}/good", ""], "an empty argument"),
        (["{root}/good", "x" * 5000], "xx does not exist"),
        (["{root}/good", "--clip", "auto"], "not measured any more"),
        (["{root}/good/00018-0.mp4"], "none of 1 videos can be read"),
    ],
)
def test_a_wrong_command_is_one_line(folders, tmp_path, arguments, words):
    words_given = [word.format(root=folders) for word in arguments]
    if words_given:
        words_given = ["--out", tmp_path, *words_given]
    run = evaluate(*words_given)
    assert run.returncode == 2 and words in run.stderr
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1


def test_a_missing_ffmpeg_is_named(folders):
    run = evaluate(folders / "good", IMAGEIO_FFMPEG_EXE="/no/ffmpeg")
    assert run.returncode == 2 and "ffmpeg /no/ffmpeg cannot be run" in run.stderr


def test_the_launcher_keeps_the_callers_folder(folders):
    """Relative paths are those of the caller, not of the checkout."""
    settings = os.environ | {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    words = ["bash", ROOT / "evaluate.sh", "one=good/00000-0.mp4", "--out", "alone"]
    run = subprocess.run(words, cwd=folders, env=settings, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert list(json.loads((folders / "alone" / "report.json").read_text())["methods"]) == ["one"]


def test_intervals_are_seeded_and_shrink_with_more_prompts():
    x = np.random.default_rng(0).normal(size=400)
    few, many = estimate(x[:25]), estimate(x)
    assert few == estimate(x[:25]) != estimate(x[:25], seed=1)
    assert few.low < few.mean < few.high and many.high - many.low < (few.high - few.low) / 2
    # The ends of an interval of 10,000 draws vary by 2% of its width, and the numbers are not quite normal.
    assert many.high - many.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.05)
    assert estimate([1.0, 2.0]).low is None


def test_samples_of_one_prompt_count_once():
    assert by_group({(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0}) == {0: 2.0, 1: 5.0}


def test_the_sign_flip_test_is_exact_for_few_pairs():
    assert sign_flip(np.array([1.0, 2, 3, 4, 5])) == 2 / 32
    assert sign_flip(np.array([1.0, -1, 1, -1])) == 1
    assert sign_flip(np.ones(30)) == 1 / 10_001
    rng = np.random.default_rng(0)
    chance = [sign_flip(rng.normal(size=8)) for _ in range(300)]
    # A share of 300 draws has a standard error of sqrt(0.1 * 0.9 / 300) = 0.017, a third of the bound.
    assert np.mean(np.array(chance) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_only_pairs_are_compared():
    difference = compare({0: 1.0, 1: 2.0, 2: 3.0, 9: 100.0}, {0: 2.0, 1: 3.0, 2: 4.0, 8: 100.0})
    assert (difference.mean, difference.n, difference.p) == (1.0, 3, 0.25)
    assert compare({0: 1.0}, {1: 1.0}) is None and compare({0: 1.0}, {0: 3.0}).p is None


def test_holm_corrects_as_published():
    # one product each, in float64; approx's 1e-6 is far more than that, and far less than a wrong factor
    assert holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])


def test_the_power_of_a_test_is_that_of_the_textbook_and_grows_with_the_units():
    # Cohen 1988, two-sided test at 0.05 with a power of 0.8: (1.960 + 0.842)^2 = 7.849 times (deviation / effect)^2
    assert units_needed(0.5, 1.0) == 32 and units_needed(-1.0, 10.0) == 785
    assert units_needed(0.0, 1.0) is None and units_needed(9.0, 1.0) == 3
    assert least_effect(785, 10.0) == pytest.approx(1.0, abs=1e-3)
    assert units_needed(0.5, 1.0, alpha=0.05 / 6) > 32


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from([-1, 1]))
def test_ranks_share_ties_and_always_add_up(values, better):
    found = ranks(values, better)
    assert sum(found) == len(values) * (len(values) + 1) / 2  # halves and whole numbers, exact in float64
    for x, rank in zip(values, found, strict=True):
        for y, other in zip(values, found, strict=True):
            assert (rank < other) == (better * x > better * y) and (rank == other) == (x == y)


def test_a_metric_that_one_method_lacks_ranks_nobody():
    scores = {"a": {"x": 1.0, "y": None}, "b": {"x": 2.0, "y": 9.0}}
    assert average_ranks(scores, {"x": 1, "y": 1}) == ({"a": 2.0, "b": 1.0}, ["x"])
    assert average_ranks(scores, {"y": 1}) == ({}, [])
