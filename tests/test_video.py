"""A video gets its name when it is whole, and never before; equal frames give equal files."""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest

from utils import ffmpeg
from utils.errors import UserError
from utils.video import VideoWriter

ROOT = Path(__file__).parent.parent
FRAMES = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((16, 32, 3), 40, np.uint8)
PROGRAM = imageio_ffmpeg.get_ffmpeg_exe()


def writer_of(path):
    return VideoWriter(path, (32, 16), fps=16)


def noise(width, height, count):
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = small.repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(picture, 3 * number, axis=1) for number in range(count)])


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A function that puts a shell script in ffmpeg's place; `$real` in it is the real one."""

    def put(script):
        path = tmp_path / "ffmpeg"
        path.write_text(f"#!/bin/bash\nreal={PROGRAM}\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))

    return put


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


@pytest.mark.parametrize("name", ["a.mp4", "12:30:05.mp4", "-a.mp4", "100% 'q' #1 ?&日本.mp4", "名" * 83 + ".mp4"])
def test_any_name_is_written_and_read(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    writer = writer_of(name)
    writer.write(FRAMES)
    writer.close()
    writer.discard()
    assert os.listdir() == [name]
    assert ffmpeg.count_frames(Path(name)) == 5
    assert np.abs(iio.imread(Path(name).read_bytes(), extension=".mp4").astype(int) - FRAMES).max() <= 8


def test_the_old_video_stays_until_the_new_one_is_whole(folder):
    path = folder / "a.mp4"
    path.write_text("old")
    discarded = writer_of(path)
    discarded.write(FRAMES)
    discarded.discard()
    assert os.listdir(folder) == ["a.mp4"] and path.read_text() == "old"
    writer = writer_of(path)
    writer.write(FRAMES)
    writer.finish()
    assert path.read_text() == "old"
    writer.close()
    assert os.listdir(folder) == ["a.mp4"] and ffmpeg.count_frames(path) == 5


def test_two_writers_of_one_video_do_not_mix(folder):
    first, second = writer_of(folder / "a.mp4"), writer_of(folder / "a.mp4")
    first.write(FRAMES)
    second.write(FRAMES[:3])
    first.close()
    assert ffmpeg.count_frames(folder / "a.mp4") == 5
    second.close()
    assert ffmpeg.count_frames(folder / "a.mp4") == 3
    assert os.listdir(folder) == ["a.mp4"]


@pytest.mark.parametrize("written", [0, 5], ids=["before the first frame", "after the last frame"])
def test_a_killed_encoder_is_one_line_and_no_video(folder, written):
    (folder / "a.mp4").write_text("old")
    writer = writer_of(folder / "a.mp4")
    writer.write(FRAMES[:written])
    writer.encoder.kill()
    writer.encoder.wait()
    with pytest.raises(UserError, match="the encoder was killed \\(SIGKILL\\)") as error:
        if written == 0:
            writer.write(FRAMES)
        writer.close()
    assert "\n" not in str(error.value)
    writer.discard()
    assert (folder / "a.mp4").read_text() == "old" and os.listdir(folder) == ["a.mp4"]


FAILURES = {
    "lost frames": (
        'case "$*" in *libx264*) set -- "${@:1:$#-1}" -frames:v 3 "${@: -1}";; esac; exec $real "$@"',
        "3 of 5 frames are in the file",
    ),
    "a status": (
        'case "$*" in *libx264*) $real "$@"; exit 7;; *) exec $real "$@";; esac',
        "the encoder stopped with status 7",
    ),
    "an error said": (
        'case "$*" in *libx264*) echo "No space left" >&2; exec $real "$@";; *) exec $real "$@";; esac',
        "No space left",
    ),
    "a cut file": (
        'case "$*" in *libx264*) $real "$@"; f="${@: -1}"; truncate -s 900 "${f#file:}";; *) exec $real "$@";; esac',
        "cannot be read to its end",
    ),
    "nothing": ("cat >/dev/null", "0 of 5 frames are in the file"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_encoding_that_is_not_whole_gets_no_name(folder, program, failure):
    script, words = FAILURES[failure]
    program(script)
    writer = writer_of(folder / "a.mp4")
    writer.write(FRAMES)
    with pytest.raises(UserError) as error:
        writer.close()
    assert words in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(folder) == []


def test_a_folder_that_is_gone_is_one_line(folder):
    with pytest.raises(UserError, match="cannot write"):
        writer_of(folder / "none" / "a.mp4")


@pytest.mark.parametrize("perturb", [None, "85", "170"])
def test_equal_frames_give_equal_files_whatever_lies_in_unwritten_memory(folder, monkeypatch, perturb):
    frames = noise(96, 64, 48)
    contents = []
    for name in ("a.mp4", "b.mp4"):
        writer = VideoWriter(folder / name, (96, 64), fps=16)
        writer.write(frames)
        writer.close()
        contents.append((folder / name).read_bytes())
        if perturb is not None:
            monkeypatch.setenv("MALLOC_PERTURB_", perturb)
    assert contents[0] == contents[1]


@pytest.mark.parametrize("flags, tamed", [("fma avx2", False), ("avx2 avx512f avx512bw", True)])
def test_a_processor_with_avx512_encodes_without_it(tmp_path, monkeypatch, flags, tamed):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(ffmpeg, "CPUINFO", cpuinfo)
    ffmpeg._has_avx512.cache_clear()
    try:
        assert ("asm=avx2" in ffmpeg.encoding((96, 64), 16)) == tamed
        ffmpeg.require_encoder()
    finally:
        ffmpeg._has_avx512.cache_clear()


def test_an_encoder_that_is_there_is_accepted():
    ffmpeg.require_encoder()


MISSING = {
    "no libx264": (
        'case "$*" in *libx264*) echo "Unknown encoder \'libx264\'" >&2; exit 8;; esac; exec $real "$@"',
        "Unknown encoder 'libx264'",
    ),
    "too old": ('echo "Unrecognized option" >&2; exit 1', "Unrecognized option"),
    "crashes": ("kill -SEGV $$", "it said nothing"),
}


@pytest.mark.parametrize("fault", MISSING)
def test_an_ffmpeg_that_cannot_encode_is_one_line(program, fault):
    script, words = MISSING[fault]
    program(script)
    with pytest.raises(UserError) as error:
        ffmpeg.require_encoder()
    assert words in str(error.value) and "IMAGEIO_FFMPEG_EXE" in str(error.value) and "\n" not in str(error.value)


def test_an_ffmpeg_that_is_not_there_is_one_line(monkeypatch, folder):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nonexistent/ffmpeg")
    for use in (ffmpeg.require_encoder, lambda: writer_of(folder / "a.mp4")):
        with pytest.raises(UserError, match="/nonexistent/ffmpeg: No such file"):
            use()
    assert os.listdir(folder) == []


def test_the_encoder_ends_with_a_killed_parent(folder):
    script = (
        "import sys, os, signal\n"
        "from tests.test_video import FRAMES, writer_of\n"
        "writer = writer_of(sys.argv[1])\n"
        "writer.write(FRAMES)\n"
        "print(writer.encoder.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script, folder / "a.mp4"], cwd=ROOT, stdout=subprocess.PIPE)
    encoder = int(run.stdout.read())
    assert run.wait() == -signal.SIGKILL
    with suppress(ProcessLookupError):  # it has ended already
        process = os.pidfd_open(encoder)
        ended, _, _ = select.select([process], [], [], 60)
        os.close(process)
        assert ended
    assert not (folder / "a.mp4").exists()
