"""The processes that a launcher starts: what they are told, how they end together, what they say."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.commands import ROOT, launched, start
from utils import launch

DOOR = "from utils.errors import UserError, run\nfrom utils.stop import stop\nimport os, signal\n"
SAY = "def say(*words): os.write(1, (' '.join(map(str, words)) + '\\n').encode())\n"  # whole lines
RANK = "rank = int(os.environ['RANK'])\n"


def module(folder: Path, body: str, name: str = "probe") -> str:
    """A program with an entry point of `body`, as the project's are."""
    lines = [f"    {line}" for line in body.splitlines()]
    (folder / f"{name}.py").write_text(f"{DOOR}{SAY}{RANK}def main():\n" + "\n".join(lines) + "\nrun(main)\n")
    return name


def ready(run: subprocess.Popen, processes: int) -> list[psutil.Process]:
    """The started processes, once each of them has printed `ready`."""
    for _ in range(processes):
        assert run.stdout.readline() == "ready\n"
    return psutil.Process(run.pid).children(recursive=True)


def test_processes_find_what_torchrun_would_tell_them(tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    probe = module(tmp_path, f"say(*(os.environ[name] for name in {names}))")
    run = launched(probe, processes=3, folder=tmp_path)
    out, err = run.communicate()
    assert (run.returncode, err) == (0, "")
    assert sorted(out.splitlines()) == [f"{rank} {rank} 3 3 localhost" for rank in range(3)]
    second = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first", "PORT": "29700"}
    out, _ = launched(probe, processes=2, folder=tmp_path, **second).communicate()
    assert sorted(out.splitlines()) == ["2 0 4 2 first", "3 1 4 2 first"]


def test_each_process_sees_one_part_of_a_divided_gpu(tmp_path):
    probe = module(tmp_path, "say(rank, os.environ['LOCAL_RANK'], os.environ['CUDA_VISIBLE_DEVICES'])")
    out, _ = launched(probe, processes=2, folder=tmp_path, CUDA_VISIBLE_DEVICES="MIG-a,MIG-b").communicate()
    assert sorted(out.splitlines()) == ["0 0 MIG-a", "1 0 MIG-b"]
    out, _ = launched(probe, processes=2, folder=tmp_path, CUDA_VISIBLE_DEVICES="GPU-a,GPU-b").communicate()
    assert sorted(out.splitlines()) == ["0 0 GPU-a,GPU-b", "1 1 GPU-a,GPU-b"]


@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "kill"])
def test_a_stop_ends_all_processes_with_one_line(tmp_path, name, status, whole_group):
    """As Ctrl-C in a terminal, which every process hears, and as `kill` of the launcher."""
    probe = module(tmp_path, "stop.tell = lambda: '2 of 8 videos are finished'\nsay('ready')\nsignal.pause()")
    run = launched(probe, processes=2, folder=tmp_path)
    workers = ready(run, 2)
    kill = os.killpg if whole_group else os.kill
    kill(run.pid, getattr(signal, name))
    _, err = run.communicate()
    assert run.returncode == status
    assert err == f"stopped: 2 of 8 videos are finished, the same command goes on (interrupted by {name})\n"
    assert len(workers) == 2 and not any(worker.is_running() for worker in workers)


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path):
    run = launched(module(tmp_path, "say('ready')\nsignal.pause()"), processes=2, folder=tmp_path)
    workers = ready(run, 2)
    run.kill()
    run.communicate()  # ends when nobody holds the pipes any more
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert len(workers) == 2 and not alive


def test_nohup_holds_and_the_launcher_is_the_process_that_is_named(tmp_path):
    """SIGHUP stays ignored in the processes; the signal that ends them is another."""
    body = "say('ready')\nos.kill(os.getpid(), signal.SIGHUP)\nsay('on')\nsignal.pause()"
    script = f"trap '' HUP; exec {sys.executable} -m utils.launch --nproc-per-node 1 {module(tmp_path, body)}"
    run = start("bash", "-c", script, cwd=tmp_path, PYTHONPATH=f"{ROOT}:{tmp_path}")
    ready(run, 1)
    assert run.stdout.readline() == "on\n"
    os.killpg(run.pid, signal.SIGHUP)
    run.terminate()
    _, err = run.communicate()
    assert (run.returncode, err) == (143, "stopped, the same command goes on (interrupted by SIGTERM)\n")


def test_a_stop_waits_for_what_is_held(tmp_path):
    body = (
        "say('ready')\nwith stop.held():\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    say('whole', stop.asked)\nsay('never')"
    )
    run = launched(module(tmp_path, body), folder=tmp_path)
    out, err = run.communicate()
    assert out == "ready\nwhole True\n" and run.returncode == 143 and err.startswith("stopped, ")


def test_a_stop_that_comes_where_nothing_can_be_raised_is_not_lost(tmp_path):
    body = (
        "class Last:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n        say('gone')\n"
        "last = Last()\ndel last\nsignal.pause()\nsay('never')"
    )
    run = launched(module(tmp_path, body), folder=tmp_path)
    out, err = run.communicate()
    assert (run.returncode, out) == (143, "")
    assert err == "stopped, the same command goes on (interrupted by SIGTERM)\n"


@pytest.mark.parametrize("processes, who", [(1, "the process"), (2, "process 1 of 2")])
def test_a_process_that_is_killed_is_named_and_ends_the_others(tmp_path, processes, who):
    body = "say('ready')\nif rank == 0:\n    os.kill(os.getpid(), signal.SIGKILL)\nsignal.pause()"
    run = launched(module(tmp_path, body), processes=processes, folder=tmp_path)
    _, err = run.communicate()
    assert run.returncode == 137 and len(err.splitlines()) == 1
    assert err.startswith(f"error: {who} was killed (SIGKILL), most likely because the machine's memory ran out; ")


def test_the_first_failure_ends_the_others_and_gives_the_status(tmp_path):
    body = "if rank == 1:\n    raise UserError('this one')\nsignal.pause()"
    run = launched(module(tmp_path, body), processes=2, folder=tmp_path)
    _, err = run.communicate()
    assert (run.returncode, err) == (2, "error: this one\n")


@pytest.mark.parametrize("status", [0, 2])
def test_a_process_that_cannot_be_taken_down_keeps_nobody_waiting(tmp_path, monkeypatch, capfd, status):
    """The first one has done its work, or failed, and a thread of its is stuck; the second ends, or waits for it."""
    ending = "raise UserError('the first one')" if status else "say('done')"
    probe = module(
        tmp_path,
        f"if rank == 0:\n    threading.Thread(target=threading.Event().wait).start()\n    {ending}\n"
        f"elif {status}:\n    signal.pause()",
    )
    (tmp_path / "probe.py").write_text("import threading\n" + (tmp_path / "probe.py").read_text())
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    one = launch.Launch(probe, [], launch.rank_environments("2"))
    assert one.run() == status
    assert [worker.poll() is None for worker in one.workers] == [False, False]
    said = capfd.readouterr().err
    assert said == ("error: the first one\n" if status else "")


def test_what_several_have_to_say_is_printed_once(tmp_path):
    body = "raise UserError('alike' if rank < 2 else 'alone')"
    run = launched(module(tmp_path, body), processes=3, folder=tmp_path)
    _, err = run.communicate()
    assert run.returncode == 2 and err.splitlines().count("error: alike") <= 1
    assert set(err.splitlines()) <= {"error: alike", "error: alone"} and err


def test_an_unforeseen_error_is_one_line_that_says_where_to_report_it(tmp_path):
    probe = module(tmp_path, "raise ValueError('a\\nb')")
    run = launched(probe, folder=tmp_path)
    out, err = run.communicate()
    assert (run.returncode, out) == (1, "")
    assert re.fullmatch(r"error: unforeseen ValueError: a b \(probe.py:\d+\); please report it .*DEBUG=1.*\n", err)
    _, err = launched(probe, folder=tmp_path, DEBUG="1").communicate()
    assert "Traceback" in err and err.splitlines()[-1].startswith("error: unforeseen ValueError")


def test_a_reader_that_has_enough_ends_a_program_without_a_word(tmp_path):
    body = "    while True:\n        print('a line')\n"
    (tmp_path / "probe.py").write_text(f"from utils.errors import run\ndef main():\n{body}run(main)\n")
    line = f"{sys.executable} {tmp_path / 'probe.py'} | head -1; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(
        ["bash", "-c", line], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (run.stdout, run.stderr) == ("a line\n141\n", "")


def test_a_full_disk_is_no_unforeseen_error(tmp_path):
    run = launched(module(tmp_path, "raise OSError(28, 'No space left on device', 'x.pt')"), folder=tmp_path)
    _, err = run.communicate()
    assert err == "error: no space left for x.pt; free some, then the same command goes on\n"
