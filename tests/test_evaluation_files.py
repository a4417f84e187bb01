"""Videos and records as people have them: odd ones are measured, bad ones are named, none is passed over in silence."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.compare.evaluate import measure_all
from evaluation.compare.pairing import find, key_of, split_name
from evaluation.report.html import build
from evaluation.video.reader import BadVideo, open_video, require_ffmpeg
from evaluation.video.record import Record, parse_record, read_record
from tests.commands import start
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
PICTURES = ["-f", "lavfi", "-i", "testsrc=size=96x64:rate=16:duration=2"]
FRAMES = 32
KEYS = ["prompt", "prompt_index", "sample", "frames", "config", "blocks", "num_output_frames", "start", "retrieved"]
KEYS.append("similarities")


def ffmpeg(*words: object) -> None:
    subprocess.run([FFMPEG, "-nostdin", "-y", "-v", "error", *map(str, words)], check=True)


def count(path: str | Path) -> int:
    return sum(1 for _ in open_video(path)[1])


def evaluate(*arguments: object, module: str = "evaluation", **settings: object) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", module, *map(str, arguments)]
    settings = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}} | settings
    return subprocess.run(words, capture_output=True, text=True, **settings)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A plain one, and one whose title imitates ffmpeg's log and whose audio is longer than its pictures."""
    folder = tmp_path_factory.mktemp("videos")
    ffmpeg(*PICTURES, "-pix_fmt", "yuv420p", folder / "plain.mp4")
    title = "title=x\n  Duration: 01:00:00.00\n  Stream #0:0: Video: raw, 9 fps"
    sound = ["-f", "lavfi", "-i", "sine=duration=5", "-movflags", "+faststart", "-metadata", title]
    ffmpeg(*PICTURES, *sound, "-pix_fmt", "yuv420p", folder / "music.mp4")
    return folder


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
def test_a_video_with_longer_audio_is_whole_and_its_title_says_nothing_of_it(videos, tmp_path, suffix):
    path = tmp_path / f"video.{suffix}"
    codecs = [] if suffix == "webm" else ["-c", "copy"]
    ffmpeg("-i", videos / "music.mp4", *codecs, path)
    video, frames = open_video(path)
    assert (video.size, video.fps, len(list(frames))) == ((96, 64), 16, FRAMES)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_video_with_longer_audio_is_truncated_when_its_pictures_end(videos, tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    ffmpeg("-i", videos / "music.mp4", "-c", "copy", "-movflags", "+faststart", whole)
    data = whole.read_bytes()
    quarter = tmp_path / f"quarter.{suffix}"
    quarter.write_bytes(data[: len(data) // 4])
    with pytest.raises(BadVideo, match="is truncated: it ends after"):
        count(quarter)


@pytest.mark.parametrize("name", ["12:30:05.mp4", "-dash.mp4", "a%03d.mp4", "file:x.mp4", "pipe:1.mp4", "~.mp4"])
def test_a_name_that_means_something_to_ffmpeg_is_a_name(videos, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes((videos / "plain.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert count(name) == FRAMES


def test_turned_covered_and_deep_pictures_are_read_as_they_are_shown(videos, tmp_path):
    plain = videos / "plain.mp4"
    ffmpeg("-display_rotation", 90, "-i", plain, "-c", "copy", tmp_path / "turned.mp4")
    ffmpeg("-f", "lavfi", "-i", "color=red:size=600x600", "-frames:v", 1, tmp_path / "cover.png")
    streams = ["-map", "1:v", "-map", "0:v", "-c:v:0", "png", "-c:v:1", "copy", "-disposition:v:0", "attached_pic"]
    ffmpeg("-i", plain, "-i", tmp_path / "cover.png", *streams, tmp_path / "covered.mp4")
    ffmpeg("-i", plain, "-pix_fmt", "yuv444p10le", "-vf", "scale=97:65", tmp_path / "deep.mp4")
    found = {}
    for name in ("turned", "covered", "deep"):
        video, frames = open_video(tmp_path / f"{name}.mp4")
        shapes = {frame.shape for frame in frames}
        found[name] = (*video.size, video.fps, video.frames)
        assert shapes == {(video.size[1], video.size[0], 3)}
    assert found == {
        "turned": (64, 96, 16, FRAMES), "covered": (96, 64, 16, FRAMES), "deep": (97, 65, 16, FRAMES)
    }  # fmt: skip


def test_sound_alone_is_no_video(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    with pytest.raises(BadVideo, match="is not a readable video"):
        open_video(tmp_path / "sound.mp4")


def ffmpeg_stand_in(path: Path, script: str) -> str:
    """An ffmpeg that does as the script says, and what FFMPEG does where it says nothing."""
    path.write_text(f'#!/bin/sh\n{script}\nexec "{FFMPEG}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_an_old_ffmpeg_is_named_before_the_work(videos, tmp_path, monkeypatch):
    old = ffmpeg_stand_in(tmp_path / "ffmpeg", 'case "$*" in *fps_mode*) echo "Unrecognized option" >&2; exit 1;; esac')
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", old)
    with pytest.raises(UserError, match=r"is too old.* 5\.1 or newer"):
        require_ffmpeg()


def test_an_ffmpeg_that_is_no_program_is_named(tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "ffmpeg"))
    with pytest.raises(UserError, match="cannot be run: Exec format error"):
        require_ffmpeg()


def test_an_ffmpeg_that_fails_within_a_frame_costs_that_video_only(videos, tmp_path, monkeypatch):
    script = 'case "$*" in *plain*) printf "P6\\n96 64\\n255\\n"; head -c 999 /dev/zero; exit 0;; esac'
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", ffmpeg_stand_in(tmp_path / "ffmpeg", script))
    methods, _ = find([str(videos)])
    measured, problems = measure_all(methods, 1, print)
    assert [Path(problem.place).name for problem in problems] == ["plain.mp4"]
    assert "breaks off after 0 frames" in problems[0].why and len(measured[methods[0].name]) == 1


def test_a_killed_worker_is_one_line(videos, tmp_path):
    killer = ffmpeg_stand_in(tmp_path / "ffmpeg", 'case "$*" in *-i*) kill -9 $PPID;; esac')
    environment = os.environ | {"IMAGEIO_FFMPEG_EXE": killer}
    run = evaluate(videos, "--workers", 2, "--out", tmp_path / "out", env=environment)
    assert run.returncode == 2 and "was killed, most likely for want of memory" in run.stderr
    assert run.stderr.count("\n") == 1


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_every_kind_of_video_is_taken_up_or_named(tmp_path):
    touch(tmp_path, "00000-0.MP4", "00001-0.mov", "00002-0.WebM", "00003-0.mkv", "00004-0.avi", "00005-0.m4v")
    touch(tmp_path, "00006-0.gif", "00007-0.mpg", "00000-0.mp4", "notes.txt", ".00008-0.partial.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (method,), problems = find([str(tmp_path)])
    assert [prompt for prompt, _ in sorted(method.videos)] == [f"{number:05d}" for number in range(6)]
    assert {Path(problem.place).name: problem.why.partition(":")[0] for problem in problems} == {
        "00000-0.mp4": "has the prompt and sample of 00000-0.MP4",
        "00006-0.gif": "is left out",
        "00007-0.mpg": "is left out",
        "folder.mp4": "is not a file",
        "gone.mp4": "is not a file",
    }


def test_videos_are_paired_by_number_record_or_name(tmp_path):
    touch(tmp_path / "x", "00012-3.mp4", "a cat-1.mp4", "plain.mp4", "b.mp4", ".00001-0.partial.mp4")
    (tmp_path / "x" / "b.json").write_text('{"prompt_index": 7, "sample": 2}')
    touch(tmp_path / "y" / "x", "00007-2.mp4")
    (first, second), problems = find([str(tmp_path / "x"), str(tmp_path / "y" / "x")])
    assert set(first.videos) == {("00012", 3), ("a cat", 1), ("plain", 0), ("00007", 2)} and not problems
    assert (first.name, second.name) == ("x", "y/x") and set(second.videos) == {("00007", 2)}
    assert key_of(Path("12-0.mp4"), Record()) == ("00012", 0)
    with pytest.raises(UserError, match="does not exist"):
        find([str(tmp_path / "z")])


def test_names_and_folders_may_hold_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("cfg=6", "plain", "a=b=c"):
        touch(tmp_path / folder, "00000-0.mp4")
    split = {}
    for argument in ("cfg=6", "mine=cfg=6", "x=y=plain", "a=b=c", "a=a=b=c", "plain"):
        split[argument] = split_name(argument, "")
    assert split == {
        "cfg=6": ("", Path("cfg=6")),
        "mine=cfg=6": ("mine", Path("cfg=6")),
        "x=y=plain": ("x=y", Path("plain")),
        "a=b=c": ("", Path("a=b=c")),
        "a=a=b=c": ("a", Path("a=b=c")),
        "plain": ("", Path("plain")),
    }
    with pytest.raises(UserError, match="'=plain' has no name before the ="):
        split_name("=plain", "")
    with pytest.raises(UserError, match="cfg=7 does not exist; try again"):
        split_name("mine=cfg=7", "try again")
    methods, _ = find(["cfg=6", "mine=cfg=6", "plain"])
    assert [method.name for method in methods] == ["cfg=6", "mine", "plain"]


def run_record(**changes: object) -> dict:
    blocks = [{"start": s, "retrieved": [0, s - 3], "similarities": [0.1, 0.2]} for s in range(3, 120, 3)]
    whole = {"prompt": "a cat", "prompt_index": 4, "sample": 1, "frames": 477, "config": {"num_output_frames": 120}}
    return whole | {"blocks": [{"start": 0, "retrieved": []}, *blocks]} | changes


def test_a_retrieved_latent_frame_is_shown_by_the_middle_of_its_pixel_frames():
    record = parse_record(run_record())
    shown = record.rows
    assert (record.prompt, record.number, record.fault) == ("a cat", (4, 1), None)
    assert len(shown) == 6 and shown[0].query == 10 and shown[0].retrieved == (0, 0)
    assert shown[-1].retrieved == (4 * 114 - 2, 0) and shown[-1].similarities == (0.2, 0.1)
    assert record.frames == {frame for row in shown for frame in (row.query, *row.retrieved)}


def test_the_json_of_another_program_is_no_fault():
    assert parse_record({}) == parse_record({"blocks": 3, "fps": 16}) == Record()


DAMAGE = ["", "{", "[]", "null", "[" * 100_000, "\0", "9" * 5000]
for damaged in (
    {"prompt_index": "4"},
    {"sample": -1},
    {"sample": True},
    {"frames": None},
    {"frames": float("inf")},
    {"config": 3},
    {"config": {"num_output_frames": "120"}},
    {"blocks": 3},
    {"blocks": [3]},
    {"blocks": [{"start": 3, "retrieved": [0, 1], "similarities": [0.1]}]},
    {"blocks": [{"start": 3, "retrieved": [0], "similarities": ["0.1"]}]},
    {"blocks": [{"start": 3, "retrieved": ["0"], "similarities": [0.1]}]},
    {"blocks": [{"start": float("nan"), "retrieved": [0], "similarities": [0.1]}]},
):
    DAMAGE.append(json.dumps(run_record(**damaged)))


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_record_is_named_and_its_video_is_still_there(tmp_path, content):
    touch(tmp_path, "cat.mp4", "dog.mp4")
    (tmp_path / "cat.json").write_text(content)
    (method,), problems = find([str(tmp_path)])
    assert [problem.place for problem in problems] == [str(tmp_path / "cat.json")]
    assert "is damaged" in problems[0].why and len(method.videos) == 2
    assert all(record.frames <= set(range(477)) for record in method.records.values())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_whatever_a_record_holds_it_is_a_record(changes):
    record = parse_record(run_record(**changes))
    for row in record.rows:
        assert isinstance(row.query, int) and len(row.retrieved) == len(row.similarities)
    assert record.prompt is None or isinstance(record.prompt, str)


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "cat.json").mkdir()
    assert read_record(tmp_path / "cat.mp4").fault == "cannot be read: Is a directory"


def test_odd_names_and_damaged_records_end_in_a_report(videos, tmp_path):
    """A name that is no text, a title with markup, a record that is damaged: the page and the JSON are whole."""
    folder = tmp_path / "a <b> & $x=1"
    folder.mkdir()
    plain = (videos / "plain.mp4").read_bytes()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4")).write_bytes(plain)
    (folder / "x.mkv").write_bytes(plain)
    (folder / "x.json").write_text(json.dumps(run_record(prompt="</script><img src=x>", blocks=3)))
    run = evaluate(f"m={folder}", folder, "--workers", 1, "--out", tmp_path / "out", cwd=tmp_path, env=utf8_off())
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("x.json: is damaged") == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;/script&gt;&lt;img src=x&gt;" in page and "<img" not in page
    assert "%20%3Cb%3E%20%26%20%24x%3D1/caf%E9.mp4" in page
    videos = json.loads((tmp_path / "out" / "report.json").read_text())["methods"]["m"]["videos"]
    assert len(videos) == 2


def utf8_off() -> dict[str, str]:
    """A terminal that shows ASCII alone."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}


def test_the_page_of_nothing_comparable_says_so(videos, tmp_path):
    from evaluation.compare.evaluate import evaluate as compare_all

    ffmpeg("-i", videos / "plain.mp4", "-t", 1, tmp_path / "short.mp4")
    methods, _ = find([str(videos / "plain.mp4"), str(tmp_path / "short.mp4")])
    measured, _ = measure_all(methods, 1, print)
    found = compare_all(methods, measured, [])
    assert found.compared == [] and "lengths differ, not compared" in found.problems[0].why
    assert "No video can be compared; each is shown below." in build(found, tmp_path)


def test_frames_are_those_of_the_file(tmp_path):
    """A picture that is written losslessly is read to the level."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    command = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x32", "-r", "4", "-i", "-", "-c:v", "ffv1"]
    words = [FFMPEG, "-v", "error", *command, "-pix_fmt", "gbrp", str(tmp_path / "exact.mkv")]
    subprocess.run(words, input=colours.tobytes(), check=True)
    video, frames = open_video(tmp_path / "exact.mkv")
    assert np.array_equal(np.stack(list(frames)), colours) and video.fps == 4


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=["stop", "kill"])
def test_what_measures_videos_ends_with_the_comparison(tmp_path, number, status):
    """The videos are pipes into which nobody writes, so measuring them would never end."""
    for name in ("a", "b"):
        os.mkfifo(tmp_path / name)
    script = (
        "from evaluation.compare.evaluate import measure_all; from evaluation.compare.pairing import Method\n"
        "from pathlib import Path; from utils.errors import run\n"
        f"paths = [Path({str(tmp_path)!r}) / name for name in 'ab']\n"
        "method = Method('m', paths[0].parent, {(path.name, 0): path for path in paths})\n"
        "def main(): measure_all([method], 2, print)\n"
        "if __name__ == '__main__': run(main)\n"
    )
    (tmp_path / "script.py").write_text(script)
    one = start(sys.executable, tmp_path / "script.py", PYTHONPATH=str(ROOT))
    decoders = []
    while len(decoders) < 2:
        assert one.poll() is None
        measuring = []
        decoders = []
        for process in psutil.Process(one.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a short-lived one, that looked for something
                found = decoders if "ffmpeg" in process.name() else measuring
                found.append(process)
    one.send_signal(number)
    _, said = one.communicate()
    assert one.returncode == status and (number == signal.SIGKILL or said.count("\n") == 1)
    _, alive = psutil.wait_procs(measuring, timeout=30)
    assert measuring and not alive
    for process in decoders:  # each waits for its pipe to be opened, and would write to nobody
        with suppress(psutil.NoSuchProcess):
            process.kill()
