"""Two runs in one folder share the work or one is refused; what the dead held is free."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Lock

import pytest

from utils import claim as module
from utils import optional
from utils.claim import CLAIM, claim
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
# Makes ten files, one at a time. Says when it is in and waits for a line before it starts.
WORKER = """
import sys, json
from pathlib import Path
from utils.claim import claim
from utils.errors import run
from utils.files import write_json

def main():
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    with claim(folder, {"seed": seed}) as held:
        print("in", flush=True)
        sys.stdin.readline()
        for number in range(10):
            name = f"{number}.json"
            if held.take(name):
                if not (folder / name).exists():
                    write_json(folder / name, {"seed": seed})
                    print(name, flush=True)
                held.give_back(name)

run(main)
"""


class Run:
    """A process that makes files in `folder`, known to be in it, or to have been refused."""

    def __init__(self, folder, seed):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, folder, str(seed)], cwd=ROOT, text=True, bufsize=1, **pipes
        )
        self.is_in = self.process.stdout.readline() == "in\n"

    def go(self):
        self.process.stdin.write("\n")

    def end(self):
        """Names of the files it made, and what it said."""
        made, said = self.process.communicate()
        return made.split(), said


def test_two_runs_of_other_settings_never_meet(tmp_path):
    first = Run(tmp_path, seed=1)
    for _ in range(3):
        second = Run(tmp_path, seed=2)
        made, said = second.end()
        assert not second.is_in and made == [] and second.process.returncode == 2
        assert f"{tmp_path} is in use by process {first.process.pid}" in said
        assert "whose seed is 1 where this run has 2" in said and len(said.splitlines()) == 1
    made, _ = first.end()
    assert len(made) == 10
    assert {path.read_text() for path in tmp_path.iterdir()} == {json.dumps({"seed": 1}, indent=1) + "\n"}
    assert len(os.listdir(tmp_path)) == 10  # and no claim is left


def test_two_runs_of_the_same_settings_make_each_file_once(tmp_path):
    for repeat in range(3):
        folder = tmp_path / str(repeat)
        runs = [Run(folder, seed=1), Run(folder, seed=1)]
        assert all(run.is_in for run in runs)
        for run in runs:
            run.go()
        made = []
        for run in runs:
            made += run.end()[0]
        assert sorted(made) == sorted(os.listdir(folder)) == [f"{number}.json" for number in range(10)]


def test_what_a_killed_run_held_is_free(tmp_path):
    first = Run(tmp_path, seed=1)
    first.process.send_signal(signal.SIGKILL)
    first.end()
    assert os.listdir(tmp_path) == [CLAIM]
    (tmp_path / f"{CLAIM}-0123456789abcdef").touch()  # what it was making
    with claim(tmp_path, {"seed": 2}) as held:
        assert os.listdir(tmp_path) == [CLAIM]
        assert held.take("a")
    assert os.listdir(tmp_path) == []


def test_a_file_is_taken_by_one_until_it_is_given_back(tmp_path):
    with claim(tmp_path, {"seed": 1}) as one, claim(tmp_path, {"seed": 1}) as other:
        assert one.take("a") and other.take("b")
        assert not one.take("b") and not other.take("a")
        one.give_back("a")
        assert other.take("a")
    assert os.listdir(tmp_path) == []


def test_the_claim_lasts_until_the_last_has_left(tmp_path):
    with claim(tmp_path, {"seed": 1}):
        with claim(tmp_path, {"seed": 1}):
            pass
        with pytest.raises(UserError, match="in use"), claim(tmp_path, {"seed": 2}):
            pass
    with claim(tmp_path, {"seed": 2}):
        pass


def test_many_at_once_are_never_of_two_settings(tmp_path):
    inside = Counter()
    guard = Lock()
    start = Barrier(6)

    def visit(number):
        entered = 0
        start.wait()
        for turn in range(60):
            seed = (number + turn) % 2
            try:
                with claim(tmp_path, {"seed": seed}):
                    with guard:
                        inside[seed] += 1
                        assert inside[1 - seed] == 0
                    with guard:
                        inside[seed] -= 1
                entered += 1
            except UserError as error:
                assert "in use" in str(error)
        return entered

    with ThreadPoolExecutor(6) as pool:
        entered = list(pool.map(visit, range(6)))
    assert sum(entered) > 0 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("junk", ["", "{", "[]", '{"identity": 3}'])
def test_junk_in_the_claims_place_is_in_nobodys_way(tmp_path, junk):
    (tmp_path / CLAIM).write_text(junk)
    with claim(tmp_path, {"seed": 1}):
        assert json.loads((tmp_path / CLAIM).read_text())["identity"] == {"seed": 1}


def test_a_claim_is_not_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / CLAIM).symlink_to(victim)
    with pytest.raises(UserError, match="is a link"), claim(folder, {}):
        pass
    assert victim.read_text() == "mine"


def test_a_file_system_without_locks_is_one_warning(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, kind):
        raise OSError(module.errno.ENOTSUP, "not supported")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    monkeypatch.setattr(optional, "_warned", set())
    with claim(tmp_path, {"seed": 1}) as held:
        assert held.take("a")
    assert capsys.readouterr().err.count("warning: ") == 1
    assert os.listdir(tmp_path) == []


@contextmanager
def descriptors_kept():
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_is_left_open(tmp_path):
    with descriptors_kept(), claim(tmp_path, {"seed": 1}) as one:
        with claim(tmp_path, {"seed": 1}) as other:
            one.take("a")
            assert not other.take("a")
        with pytest.raises(UserError), claim(tmp_path, {"seed": 2}):
            pass
