"""The launchers: which Python, how many processes, whose paths, and what they refuse."""

import os
import re
import subprocess
import sys

import pytest

from tests.commands import ROOT, command, start


@pytest.mark.parametrize(
    "variable, value, words",
    [
        ("NGPU", "0", "a whole number of 1 or more"),
        ("NGPU", "abc", "a whole number of 1 or more"),
        ("PORT", "99999", "a whole number from 1 to 65535"),
        ("NNODES", "x", "a whole number of 1 or more"),
        ("NODE_RANK", "1", "a whole number from 0 to 0"),
        ("GPU", "0,", "nvidia-smi -L"),
        ("GPU", "first", "nvidia-smi -L"),
        ("GPUS", "0;1", "nvidia-smi -L"),
    ],
)
def test_a_number_that_cannot_be_meant_is_one_line(variable, value, words):
    run = command("tinyworld", "native", launcher="inference.sh", **{variable: value})
    _, err = run.communicate()
    assert run.returncode == 2 and len(err.splitlines()) == 1
    assert err.startswith(f"error: {variable.removesuffix('S') if variable == 'GPUS' else variable}={value} is not")
    assert words in err


@pytest.mark.parametrize(
    "processes, environment",
    [
        (3, {}),
        (2, {"GPU": "0,2"}),
        (2, {"GPUS": "0,2"}),
        (1, {"GPU": "MIG-a"}),
        (1, {"CUDA_VISIBLE_DEVICES": "2"}),
        (2, {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}),
        (1, {"CUDA_VISIBLE_DEVICES": ""}),
        (5, {"CUDA_VISIBLE_DEVICES": "0,1", "NGPU": "5"}),
    ],
    ids=str,
)
def test_a_process_is_started_for_each_gpu(tmp_path, monkeypatch, processes, environment):
    for name in ("GPU", "GPUS", "NGPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    lines = '"GPU 0: X" "GPU 1: X" "GPU 2: X"'
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/bash\nprintf '%s\\n' {lines}\n")
    (tmp_path / "python").write_text('#!/bin/bash\n[ "$2" = utils.launch ] && echo "$3 $4"\nexit 0\n')
    for name in ("nvidia-smi", "python"):
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    run = command("tinyworld", "native", launcher="inference.sh", PATH=path, **environment)
    out, _ = run.communicate()
    assert out.splitlines()[-1] == f"--nproc-per-node {processes}"


@pytest.mark.parametrize(
    "own, found",
    [
        ({}, "pinned_use_cuda_host_register:True,pinned_num_register_threads:8"),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, "expandable_segments:True"),
    ],
)
def test_host_memory_is_pinned_by_several_threads_unless_told_otherwise(tmp_path, monkeypatch, own, found):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "python").write_text('#!/bin/bash\n[ "$2" = utils.launch ] && echo "$PYTORCH_ALLOC_CONF"\nexit 0\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NGPU": "1"} | own
    script = f"source {ROOT}/utils/env.sh; launch inference"
    result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == found


def test_every_entry_point_goes_through_the_same_door():
    programs = []
    for path in sorted(ROOT.rglob("*.py")):
        if any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            continue
        if path.name == "vbench_cpu.py":  # it runs where VBench is installed, and this project is not
            continue
        _, main, rest = path.read_text().partition('\nif __name__ == "__main__":\n')
        if main:
            programs.append(path)
            assert rest in ("    run(main)\n", "    errors.run(main)\n"), path
    assert len(programs) > 10


@pytest.mark.parametrize("arguments", [[], ["tinywrold", "native"], ["tinyworld"], ["tinyworld", "memory"]], ids=str)
def test_a_wrong_choice_prints_the_choices(arguments):
    run = command(*arguments, launcher="inference.sh")
    _, err = run.communicate()
    assert run.returncode == 2
    assert "causal_forcing | self_forcing | longlive | tinyworld" in err and "native | latentmem" in err
    assert err.startswith("error: ") and len(err.splitlines()) == 4


def test_an_active_environment_without_the_packages_is_refused_in_one_line(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    path = f"{tmp_path}/empty/bin:{os.environ['PATH']}"
    run = command("tinyworld", "native", launcher="inference.sh", VIRTUAL_ENV=f"{tmp_path}/empty", PATH=path)
    _, err = run.communicate()
    assert run.returncode == 2 and len(err.splitlines()) == 1
    assert f"the active environment at {tmp_path}/empty lacks torch, diffusers" in err and "requirements.txt" in err


@pytest.fixture
def pythons(tmp_path):
    """A folder, first in PATH, in which no interpreter runs, and a way to ask env.sh for one."""
    names = ["python", "python3", *(f"python3.{minor}" for minor in range(10, 21))]
    for name in names:
        (tmp_path / name).write_text("#!/bin/bash\nexit 1\n")
        (tmp_path / name).chmod(0o755)

    def find(python: str | None = None, version: str = "3.11", **environment: str) -> subprocess.Popen:
        if python:
            text = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0); exec(sys.argv[2])"
            (tmp_path / python).write_text(f"#!/bin/bash\nexec {sys.executable} -c '{text}' \"$@\"\n")
        path = f"{tmp_path}:{os.environ['PATH']}"
        return start("bash", "-c", f"source {ROOT}/utils/env.sh; find_python", PATH=path, **environment)

    return find


@pytest.mark.parametrize("python, version", [("python3", "3.10"), ("python3.12", "3.12"), ("python3.14", "3.14")])
def test_a_newer_interpreter_beside_an_old_one_is_found(pythons, python, version):
    out, err = pythons(python, version).communicate()
    assert (out, err) == (f"{python}\n", "")


def test_a_tried_version_comes_before_a_newer_one(pythons):
    pythons("python3", "3.14").communicate()
    out, _ = pythons("python3.11", "3.11").communicate()
    assert out == "python3.11\n"


def test_without_a_python_one_line_says_what_to_install(pythons):
    run = pythons("python3", "3.8")
    out, err = run.communicate()
    assert (run.returncode, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith("error: no Python 3.10 or newer found; 'apt install python3 python3-venv'")
    run = pythons("python3", "3.8", PYTHON="python3")
    _, err = run.communicate()
    assert (run.returncode, err) == (2, "error: PYTHON=python3 is no Python 3.10 or newer that runs\n")


def test_a_project_that_cannot_be_written_says_what_to_do_instead(tmp_path):
    (tmp_path / "requirements.txt").write_text("torch\n")
    (tmp_path / ".venv.lock").mkdir()
    script = f"source {ROOT}/utils/env.sh; ROOT={tmp_path}; install requirements.txt"
    run = start("bash", "-c", script)
    _, err = run.communicate()
    assert run.returncode == 2 and len(err.splitlines()) == 1
    assert f"cannot write .venv into {tmp_path}; activate an environment of your own" in err


def test_every_folder_of_code_is_installed_with_the_package():
    listed = re.search(r"include = \[(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert folders == {name for name in re.findall(r'"(\w+)\.\*"', listed)}
    assert all(f'"{folder}"' in listed for folder in folders)


def test_an_error_leaves_the_launcher_as_one_line_and_exit_status_2():
    run = command("tinyworld", "native", "num_output_frames=10", launcher="inference.sh")
    _, err = run.communicate()
    assert run.returncode == 2
    assert err.splitlines() == ["error: num_output_frames 10 is no multiple of num_frame_per_block 3; try 9 or 12"]


def test_an_error_that_every_process_meets_is_printed_once():
    run = command("tinyworld", "native", "sead=1", launcher="inference.sh", NGPU="2")
    _, err = run.communicate()
    assert run.returncode == 2
    assert err.splitlines() == ["error: unknown setting 'sead' in the command line; did you mean 'seed'?"]


def test_a_gpu_that_does_not_exist_is_named():
    run = command("tinyworld", "native", launcher="inference.sh", GPU="57")
    _, err = run.communicate()
    assert run.returncode == 2 and "GPU=57" in err and len(err.splitlines()) == 1


def test_relative_paths_are_the_callers_also_through_a_link(tmp_path):
    """What a shipped config names is found in the project; what the caller names, in the caller's folder."""
    (tmp_path / "p.txt").write_text("A desert at dusk.\n")
    launcher = tmp_path / "generate"
    launcher.symlink_to(ROOT / "inference.sh")
    short = ["num_output_frames=3", "data_path=p.txt", "output_folder=~/out", f"text_cache={tmp_path}/cache"]
    run = start("bash", launcher, "tinyworld", "native", *short, cwd=tmp_path, HOME=str(tmp_path))
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000-0.json",
        "00000-0.mp4",
    ]
