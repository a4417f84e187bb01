"""Files are whole or absent, whoever writes them, dies, or runs out of space; caches and pictures are no musts."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.memory_plot import plot_memory
from pipeline.text import TextCache, encode_prompts
from utils import optional, temporary
from utils.cache import sha256_once, write_cached
from utils.errors import UserError
from utils.files import atomic, publish, require_writable, sha256, write_json
from utils.optional import best_effort
from utils.temporary import create_temporary, machine, started
from utils.tensors import digest, read_tensors, save_tensors

ROOT = Path(__file__).parent.parent


@contextmanager
def no_file_longer_than(size):
    """Writes beyond `size` bytes fail in this process, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_its_writer_put_there_itself_can_be_read_by_whom_others_can(tmp_path):
    with atomic(tmp_path / "a.safetensors") as path:
        save_file({"x": torch.zeros(1)}, path)
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


def write_plainly(path):
    with atomic(path) as temporary:
        temporary.write_bytes(bytes(100_000))


def write_archive(path):
    save_tensors(path, {"x": torch.zeros(100_000)})


def write_archive_by_path(path):
    with atomic(path) as temporary:
        torch.save({"x": torch.zeros(100_000)}, temporary)


def write_safetensors(path):
    with atomic(path) as temporary:
        save_file({"x": torch.zeros(100_000)}, temporary)


@pytest.mark.parametrize("write", [write_plainly, write_archive, write_archive_by_path, write_safetensors])
def test_no_room_is_one_line_and_the_old_file_stays(tmp_path, write):
    path = tmp_path / "a.pt"
    path.write_text("old")
    with no_file_longer_than(50_000), pytest.raises(UserError) as error:
        write(path)
    message = str(error.value)
    assert message.startswith(f"cannot write {path}: ") and "\n" not in message
    assert os.listdir(tmp_path) == ["a.pt"] and path.read_text() == "old"
    write(path)
    assert os.listdir(tmp_path) == ["a.pt"] and path.stat().st_size >= 100_000


def test_an_error_about_another_file_is_not_taken_for_a_failed_write(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        (tmp_path / "elsewhere" / "input").read_text()
    assert os.listdir(tmp_path) == []


def test_a_file_in_a_folders_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is no folder; choose another"):
        write_json(tmp_path / "file" / "under" / "a.json", {})
    for folder in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(UserError, match="not writable: it is a file"):
            require_writable(folder)


def test_two_writers_of_one_file_share_no_temporary(tmp_path):
    path = tmp_path / "a.txt"
    with atomic(path) as first, atomic(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert os.listdir(tmp_path) == ["a.txt"] and path.read_text() == "first"


def test_temporary_names_keep_the_suffix_and_fit_whatever_the_name(tmp_path):
    name = "名" * 83 + ".mp4"  # 253 of 255 bytes
    with atomic(tmp_path / name) as temporary:
        assert temporary.name.endswith(".partial.mp4") and len(temporary.name) < 100
    assert os.listdir(tmp_path) == [name]


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    link = tmp_path / "out.json"
    link.symlink_to(victim)
    write_json(link, {"a": 1})
    assert victim.read_text() == "mine" and not link.is_symlink()
    monkeypatch.setattr(temporary.secrets, "token_hex", lambda count: "0" * 16)
    planted = create_temporary(tmp_path / "b.json")
    planted.unlink()
    planted.symlink_to(victim)
    with pytest.raises(UserError):
        write_json(tmp_path / "b.json", {"a": 1})
    assert victim.read_text() == "mine"


def test_a_folder_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_json(require_writable(tmp_path / "link") / "a.json", 1)
    assert os.listdir(tmp_path / "real") == ["a.json"]


def test_temporaries_of_the_dead_are_swept_and_others_stay(tmp_path):
    script = (
        "import sys; from pathlib import Path; from utils.temporary import create_temporary as c; c(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "dead.mp4"], cwd=ROOT, check=True)
    (dead,) = tmp_path.iterdir()
    mine = create_temporary(tmp_path / "mine.mp4")
    # This process's number, given before to a process that started at another time.
    reused = tmp_path / f".{machine()}-{os.getpid()}-{started(os.getpid()) - 1}-{'0' * 16}.partial.mp4"
    foreign = tmp_path / f".{'0' * 12}-1-1-{'0' * 16}.partial.mp4"
    forgotten = tmp_path / f".{'0' * 12}-2-1-{'0' * 16}.partial.mp4"
    other = tmp_path / ".a.partial.mp4"
    for path in (reused, foreign, forgotten, other):
        path.touch()
    os.utime(forgotten, (0, 0))
    require_writable(tmp_path)
    assert dead != mine
    assert set(tmp_path.iterdir()) == {mine, foreign, other}


def test_a_cache_is_swept_where_it_is_written(tmp_path):
    forgotten = tmp_path / f".{'0' * 12}-2-1-{'0' * 16}.partial.txt"
    forgotten.touch()
    os.utime(forgotten, (0, 0))
    write_cached(tmp_path / "a.txt", lambda temporary: temporary.write_text("kept"))
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "kept"


def test_a_folder_without_room_is_refused_before_it_is_made(tmp_path):
    with pytest.raises(UserError, match="MB free"):
        require_writable(tmp_path / "a" / "b", need_bytes=1 << 60)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_an_impossible_folder_name_is_one_line(tmp_path, name):
    with pytest.raises(UserError, match="output folder"):
        require_writable(tmp_path / name)


def test_json_is_valid_whatever_the_numbers(tmp_path):
    nan = float("nan")
    write_json(tmp_path / "a.json", {"a": [1.5, nan, (float("inf"), np.float64("-inf"))], "b": {"c": nan}})

    def refuse(word):
        raise AssertionError(word)

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert content == {"a": [1.5, None, [None, None]], "b": {"c": None}}


def test_a_published_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    new = create_temporary(path)
    new.write_text("new")
    publish(new, path)
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a"]


@pytest.fixture
def warnings(monkeypatch, capsys):
    monkeypatch.setattr(optional, "_warned", set())
    return lambda: capsys.readouterr().err.splitlines()


def folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file"


def folder_below_a_file(tmp_path):
    return folder_that_is_a_file(tmp_path) / "cache"


def folder_that_cannot_grow(tmp_path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return tmp_path / "cache"


@pytest.mark.parametrize("where", [folder_that_is_a_file, folder_below_a_file, folder_that_cannot_grow])
def test_a_cache_that_cannot_be_written_is_one_warning(tmp_path, warnings, where):
    weights = tmp_path / "weights"
    weights.write_bytes(b"abc")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        folder = where(tmp_path)
        embeddings = encode_prompts(
            lambda: lambda texts: torch.ones(len(texts), 4, 2), ["a", "b"], TextCache(folder, "")
        )
        digests = [sha256_once(weights, folder), sha256_once(weights, folder)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [x.sum().item() for x in embeddings.values()] == [8, 8]
    assert digests == [sha256(weights)] * 2
    (line,) = warnings()
    assert line.startswith("warning: writing to the cache failed, the run goes on without it: cannot write ")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"g" * 64, b"a" * 63])
def test_a_damaged_digest_is_made_anew(tmp_path, damage):
    weights = tmp_path / "weights"
    weights.write_bytes(b"abc")
    digest = sha256_once(weights, tmp_path / "cache")
    (note,) = (tmp_path / "cache").iterdir()
    assert note.read_text() == digest
    note.write_bytes(damage)
    assert sha256_once(weights, tmp_path / "cache") == digest
    assert note.read_text() == digest


@pytest.mark.parametrize(
    "content",
    [
        {"embedding": torch.ones(3, 2), "rows": torch.tensor([2])},  # more rows than there may be
        {"embedding": torch.ones(3), "rows": torch.tensor([4])},
        {"embedding": torch.ones(3, 2), "rows": torch.tensor([4, 4])},
        {"rows": torch.tensor([4])},
    ],
)
def test_a_damaged_embedding_is_not_used(tmp_path, content):
    cache = TextCache(tmp_path, "")
    cache.put("a", torch.ones(4, 2))
    assert cache.get("a").shape == (4, 2)
    save_file(content, cache.path("a"))
    assert cache.get("a") is None


def test_work_that_may_fail_warns_once(warnings):
    for _ in range(2):
        with best_effort("drawing", "the video is whole"):
            raise ZeroDivisionError("first\nsecond")
    assert warnings() == ["warning: drawing failed, the video is whole: first second"]


@pytest.mark.parametrize("prompt", ["says $$ SALE $$ above", "graffiti $# and $% on it", r"C:\new\$x\$"])
def test_a_prompt_with_dollars_is_drawn(tmp_path, prompt):
    blocks = [{"start": 3, "retrieved": [], "similarities": []}, {"start": 6, "retrieved": [1], "similarities": [0.5]}]
    plot_memory(tmp_path / "a.png", blocks, 9, prompt)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_digest_tells_type_shape_and_every_byte():
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    same = torch.from_numpy(values.copy())
    assert digest(values) == digest(same) == digest(same.transpose(0, 1).contiguous().transpose(0, 1))
    changed = values.copy()
    changed[1, 2, 3] += 1
    others = [changed, values.reshape(6, 4), values.view(np.int8), same.view(torch.bfloat16)]
    assert len({digest(values), *map(digest, others)}) == 5
    assert digest(torch.ones((), dtype=torch.bfloat16)) != digest(torch.zeros((), dtype=torch.bfloat16))


def test_saved_tensors_are_the_same_bytes_under_any_name(tmp_path):
    for name in ("a.pt", "b.pt"):
        save_tensors(tmp_path / name, {"x": torch.arange(3)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert read_tensors(tmp_path / "a.pt", "weights")["x"].tolist() == [0, 1, 2]
