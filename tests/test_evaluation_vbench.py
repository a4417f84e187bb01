"""VBench-Long from outside: what is laid out for it, what it is called with, what is read from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.compare.pairing import Method
from evaluation.compare.statistics import average_ranks
from evaluation.vbench.export import DIMENSIONS, command, export_method
from evaluation.vbench.published import FILE, changes, contradictions, opposite, papers_of
from evaluation.vbench.results import read_scores, table, warnings
from pipeline.backbones import METHODS
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
PAPERS = json.loads(FILE.read_text())["papers"]
RANKS = PAPERS[0]["average_rank"]
WROTE = json.loads((ROOT / "tests/goldens/vbench_long.json").read_text())["wrote"]  # method -> file's content


def vbench(*arguments: object) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "evaluation.vbench", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def method(tmp_path):
    folder = tmp_path / "my_videos"
    folder.mkdir()
    keys = {("a cat_and_dog", 0): "a cat_and_dog-0.mp4", ("a cat_and_dog", 1): "a cat_and_dog-1.mp4"}
    for name in keys.values():
        (folder / name).write_bytes(name.encode())
    return Method("my_method", folder, {key: folder / name for key, name in keys.items()})


def write_result(folder: Path, dimension: str, score: float, details: list | None = None, name: str = "r") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_eval_results.json").write_text(json.dumps({dimension: [score, details or []]}))


@pytest.mark.parametrize("backbone", RANKS)
def test_average_ranks_of_the_published_numbers_are_the_papers(backbone):
    paper = papers_of(60, backbone)[backbone][0]
    ranks, used = average_ranks(paper.rows[backbone], dict.fromkeys(DIMENSIONS, 1))
    assert used == list(DIMENSIONS)
    assert ranks == pytest.approx(RANKS[backbone], abs=0.005)  # published with two digits
    assert ranks["latentmem"] == pytest.approx(4 / 3)  # whole numbers, one division


def test_published_rows_are_percent_with_a_source_and_named_as_they_are_run():
    for paper in PAPERS:
        assert "arXiv" in paper["source"] or "github.com" in paper["source"]
        for methods in paper["rows"].values():
            for name, row in methods.items():
                assert name.split(", ")[0] in {*METHODS, "pyramid_forcing"}, name
                assert all(value is None or 30 < value < 100 for value in row), name


def test_papers_that_contradict_each_other_are_marked():
    """Deep Forcing gains 25 points of dynamic degree in its own table and loses 10 in LongLive-RAG's."""
    found = changes(papers_of(60, "self_forcing")["self_forcing"], "self_forcing", {})
    assert found["deep_forcing", "Deep Forcing"]["dynamic_degree"] == pytest.approx(25.21)
    assert found["deep_forcing", "LongLive-RAG"]["dynamic_degree"] == pytest.approx(-10.28)
    marked = contradictions(found, opposite)
    assert ("deep_forcing", "dynamic_degree") in marked and ("deep_forcing", "aesthetic_quality") not in marked
    lines = vbench("table", "--backbone", "self_forcing").stdout.splitlines()
    rows = [line for line in lines if line.startswith("deep_forcing ") and "Pyramid" in line]
    assert "43.10 !" in rows[0] and "-0.65 !" in rows[1]
    assert any("arXiv 2605.13111" in line for line in lines)


def test_own_rows_stand_beside_the_papers(tmp_path):
    for name, score in (("native", 0.4), ("self_forcing_deep_forcing", 0.3)):
        write_result(tmp_path / name, "dynamic_degree", score)
    run = vbench("table", tmp_path / "native", tmp_path / "self_forcing_deep_forcing", "--backbone", "self_forcing")
    mine = next(line for line in run.stdout.splitlines() if line.startswith("deep_forcing ") and "yours" in line)
    assert mine.split() == ["deep_forcing", "yours", "-", "-", "-", "-10.00", "!", "-", "-", "-"]


def test_names_have_no_underscore_and_end_in_a_number(method, tmp_path):
    folder = export_method(method, tmp_path / "out")
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["00000-0.mp4", "00000-1.mp4"]
    assert (folder / "00000-1.mp4").read_bytes() == b"a cat_and_dog-1.mp4"
    numbered = Method("n", method.path, {("00012", 3): next(iter(method.videos.values()))})
    assert [path.name for path in export_method(numbered, tmp_path / "out").glob("*.mp4")] == ["00012-3.mp4"]


def test_a_folder_made_for_other_videos_is_refused(method, tmp_path):
    folder = export_method(method, tmp_path / "out")
    (folder / "split_clip").mkdir()
    assert export_method(method, tmp_path / "out") == folder
    next(iter(method.videos.values())).write_bytes(b"another video")
    with pytest.raises(UserError, match="was made for other videos"):
        export_method(method, tmp_path / "out")


def test_the_command_spells_out_what_the_defaults_get_wrong(tmp_path):
    words = command("python3.10", Path("VBench"), tmp_path, "subject_consistency")
    long = Path("VBench").resolve() / "vbench2_beta_long"
    assert words[:2] == ["python3.10", f"{long}/eval_long.py"] and words[-1] == "--dev_flag"
    options = dict(zip(words[2:-1:2], words[3:-1:2], strict=True))
    assert options["--clip_length_config"] == f"{long}/configs/clip_length_mix.yaml"  # else sought where pip has none
    assert options["--mode"] == "long_custom_input" and options["--dimension"] == "subject_consistency"
    assert options["--sb_clip2clip_feat_extractor"] == "dinov2"


def test_a_dimension_that_was_not_run_is_not_zero(tmp_path):
    write_result(tmp_path / "a", "subject_consistency", 0.9352)
    scores = read_scores(tmp_path)
    assert scores["subject_consistency"] == pytest.approx(93.52)  # one product in float64
    assert all(scores[name] is None for name in DIMENSIONS[1:])
    other = dict.fromkeys(DIMENSIONS, 50.0)
    lines = table({"mine": scores, "other": other}).splitlines()
    assert lines[2].split() == ["mine", "93.52", "-", "-", "-", "-", "-", "1.00", "(of", "1)"]
    assert lines[3].endswith("2.00 (of 1)")


def record(folder: Path, content: dict) -> Path:
    """A result file as VBench-Long names it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results_2026-11-26-01:50:00_eval_results.json"
    path.write_text(json.dumps(content))
    return path


def test_what_the_program_writes_is_read(tmp_path):
    for dimension, result in WROTE["native"].items():
        record(tmp_path / dimension, {dimension: result})
    scores = read_scores(tmp_path)
    for dimension in DIMENSIONS:
        assert scores[dimension] == pytest.approx(100 * WROTE["native"][dimension][0])  # one product in float64
    assert warnings(tmp_path) == []


def test_results_that_mislead_are_named(tmp_path):
    """VBench lists a score for each clip; what is lost is counted in videos."""
    score, clips = WROTE["native"]["subject_consistency"]
    assert len(clips) == 4
    lost = [clip | {"clip2clip_score": 0} if "00000-1.mp4" in clip["video_path"] else clip for clip in clips]
    alone = [clip | {"video_results": clip["inclip_score"]} for clip in clips]
    for found, words in (
        ([score, lost], "found no long-range score of 1 of 2 videos"),
        ([score, alone], "was run without --dev_flag, its long-range half counts 0"),
        (WROTE["short"]["subject_consistency"], "has no long-range half: no video is longer than a clip of 2 s"),
    ):
        path = record(tmp_path, {"subject_consistency": found})
        assert warnings(tmp_path) == [f"{path.name}: subject_consistency {words}"]


def test_a_still_video_scores_100(tmp_path):
    """Its frames' cosine is above 1 in float32."""
    assert WROTE["still"]["background_consistency"][0] > 1
    assert read_scores(record(tmp_path, WROTE["still"]))["background_consistency"] == 100


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is broken"),
        ("[]", "is broken"),
        ("[" * 100_000, "is broken"),
        ('{"subject_consistency": {}}', "is broken"),
        ('{"subject_consistency": []}', "is broken"),
        ('{"subject_consistency": ["much"]}', "is broken"),
        ('{"subject_consistency": [0.9, [{"clip2clip_score": null}]]}', "is broken"),
        ('{"subject_consistency": [0.9, [0.9]]}', "is broken"),
        ('{"imaging_quality": [68.1]}', "68.1"),
        ('{"imaging_quality": [NaN]}', "nan"),
    ],
)
def test_a_result_that_cannot_be_one_is_named(tmp_path, content, words):
    (tmp_path / "x_eval_results.json").write_text(content)
    run = vbench("table", tmp_path)
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert "x_eval_results.json" in run.stderr and words in run.stderr


@pytest.mark.parametrize("damage", ["", "{", "[]", "[" * 100_000, "\0\xff"])
def test_a_folder_whose_names_are_damaged_is_refused(method, tmp_path, damage):
    """Whether its clips are of these videos cannot be known."""
    folder = export_method(method, tmp_path / "out")
    (folder / "names.json").write_text(damage)
    with pytest.raises(UserError, match="was made for other videos"):
        export_method(method, tmp_path / "out")


def test_names_may_hold_an_equals_sign(tmp_path):
    write_result(tmp_path / "a=b", "subject_consistency", 0.7)
    assert "mine" in vbench("table", f"mine={tmp_path}/a=b").stdout
    assert vbench("table", f"{tmp_path}/a=b").stdout.splitlines()[2].startswith("a=b")


def test_export_and_table_work_end_to_end(method, tmp_path):
    out = tmp_path / "out"
    run = vbench("export", f"mine={method.path}", "--out", out)
    assert run.returncode == 0 and run.stdout.count("--dev_flag") == 6, run.stderr
    for dimension in DIMENSIONS:
        write_result(out / "mine" / "vbench" / dimension, dimension, 0.7)
    run = vbench("table", out, "--backbone", "self_forcing")
    assert run.returncode == 0 and "warning" not in run.stdout
    mine = next(line for line in run.stdout.splitlines() if line.startswith("mine"))
    assert mine.split() == ["mine", *["70.00"] * 6, "-"] and "latentmem" in run.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "required: ACTION"),
        (["table", "no/such/results"], "no/such/results does not exist"),
        (["table", "--backbone", "selfforcing"], "did you mean 'self_forcing'?"),
        (["table", "{tmp}", "--backbone", "x"], "--backbone x is not one of"),
        (["table", "--seconds", "40"], "give one of 30, 60, 120"),
        (["export", "{tmp}"], "no videos"),
        (["export", "--out", "", "{tmp}"], "--out is empty"),
        (["export", "--out", "{tmp}/my_videos/a cat_and_dog-0.mp4", "{tmp}/my_videos"], "is not writable"),
        (["export", "--out", "{tmp}/out", "n" * 300 + "={tmp}/my_videos"], "cannot export to"),
    ],
)
def test_a_wrong_command_is_one_line(method, tmp_path, arguments, words):
    run = vbench(*(word.format(tmp=tmp_path) for word in arguments))
    assert run.returncode == 2 and words in run.stderr and run.stderr.count("\n") == 1
