"""Runs that are killed, and runs that meet: `python -m tests.trials [key=value ...]`.

Not part of the tests, as it takes hours. Videos, a corpus and an encoder are made once undisturbed. Then each command
is killed at random moments and started again, by itself and through its launcher, until it has been killed so often;
whatever has its name must be whole at any time, and in the end all files must be those of the undisturbed run, with
nothing beside them, no process alive and no temporary file. Then two runs of the same settings and two of different
ones start together in one folder. Prints a line a trial; the exit status is 1 if anything was wrong.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from tests.commands import ACTIVE, ROOT
from utils.errors import UserError, run
from utils.settings import Settings, load_settings, setting

MARK = "TRIAL"  # variable by which a trial's processes are known, whichever session they are in
PATIENCE = 60.0  # seconds for the processes of a killed run to end
PROMPTS = ("A desert at dusk.", "A meadow at noon.", "A hill at dawn.")
PYTHONS_OWN = "pymp-"  # empty folders of the module multiprocessing, which a killed process cannot take away
ENDS = ("process", "launcher", "group", "worker")  # what is killed


@dataclass(frozen=True, kw_only=True)
class TrialSettings(Settings):
    """The trials"""

    kills: int = setting(50, "of each command", at_least=0)
    meetings: int = setting(10, "of two equal runs, and of two different ones, of each command", at_least=0)
    only: list[str] = setting([], "commands to try; all if empty")
    seed: int = setting(0, "of the moments", at_least=0)
    folder: str = setting("runs/trials", "a new folder to work in", writes=True)


@dataclass(frozen=True)
class Command:
    """A command of the project.

    Attributes:
        direct, launched: its words before the settings.
        output: the setting that names where it writes.
        settings: the others.
        grows: files that a run writes again and again while it is under way.
    """

    direct: tuple[str, ...]
    launched: tuple[str, ...]
    output: str
    settings: tuple[str, ...]
    grows: tuple[str, ...] = ()


def commands(folder: Path) -> dict[str, Command]:
    """The commands, short enough for hundreds of runs; makes what they read."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "latents").mkdir()
    for number in range(12):
        generator = torch.Generator().manual_seed(number)
        torch.save(torch.randn(20, 16, 8, 12, generator=generator), folder / f"latents/latent_{number:06d}.pt")
    prompts = (f"data_path={folder}/prompts.txt", f"text_cache={folder}/cache", "num_output_frames=24")
    prompts += ("denoising_step_list=[1000,500]",)
    corpus = "configs/tinyworld_generate_latent.yaml"
    encoder = "ae/configs/tinyworld_ae.yaml"
    training = (f"data_dir={folder}/latents", "tag=t", "epochs=8", "save_steps=1", "save_every=3", "batch_size=4")
    python = sys.executable
    return {
        "inference": Command(
            (python, "inference.py", "configs/tinyworld_latentmem.yaml"),
            ("bash", "inference.sh", "tinyworld", "latentmem"),
            "output_folder",
            prompts,
        ),
        "generate_latent": Command(
            (python, "generate_latent.py", corpus),
            ("bash", "generate_latent.sh", corpus),
            "output_folder",
            (*prompts, "max_video_saves=2"),
        ),
        "ae.train": Command(
            (python, "-m", "ae.train", encoder),
            ("bash", "train_ae_delta.sh", encoder),
            "log_dir",
            (*training, "num_workers=1"),
            ("last.pt", "best.pt", "curve.csv"),
        ),
    }


class Run:
    """One start of a command, and all processes that come of it."""

    def __init__(self, command: Command, out: Path, *more: str, launched: bool = False, processes: int = 1) -> None:
        self.mark = uuid.uuid4().hex
        self.log = out.with_name(f"{out.name}.log")
        self.temporary = out.with_name(f"{out.name}.tmp")
        self.temporary.mkdir(parents=True, exist_ok=True)
        words = command.launched if launched else command.direct
        where = {MARK: self.mark, "TMPDIR": str(self.temporary), "NGPU": str(processes)}
        where["TORCHINDUCTOR_CACHE_DIR"] = str(out.with_name("inductor"))  # made by PyTorch, one for all runs
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*words, f"{command.output}={out}", *command.settings, *more],
                cwd=ROOT, env=os.environ | ACTIVE | where, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status; None if it is at work after so many seconds."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def alive(self) -> list[psutil.Process]:
        """The processes that carry the run's mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def kill(self, end: str, rng: random.Random) -> None:
        """Kill what `end` says with SIGKILL."""
        others = [process for process in self.alive() if process.pid != self.process.pid]
        if end == "group":
            os.killpg(self.process.pid, signal.SIGKILL)
        elif end == "worker" and others:
            rng.choice(others).kill()
        else:
            self.process.kill()

    def survivors(self) -> list[str]:
        """Command lines of the processes that do not end; they are killed then."""
        last = time.monotonic() + PATIENCE
        while self.alive() and time.monotonic() < last:
            self.wait(0.05)
        found = []
        for process in self.alive():
            found.append(" ".join(process.cmdline()))
            process.kill()
        self.wait()
        return found


class Trials:
    """All trials of one command; `faults` says what was wrong."""

    def __init__(self, name: str, command: Command, folder: Path, rng: random.Random) -> None:
        self.name = name
        self.command = command
        self.folder = folder / name
        self.folder.mkdir()
        self.rng = rng
        self.faults: list[str] = []
        self.whole = self.undisturbed("whole")

    def undisturbed(self, name: str, *more: str) -> dict[str, Any]:
        """The files of a run that nothing disturbs."""
        started = time.monotonic()
        one = Run(self.command, self.folder / name, *more)
        if one.wait() != 0:
            raise UserError(f"{self.name} does not run: {one.log} says why")
        self.seconds = time.monotonic() - started
        return contents(self.folder / name)

    def killed(self, kills: int) -> None:
        """Kill runs so often, and start them again until they are done."""
        done = 0
        number = 0
        while done < kills:
            out = self.folder / f"killed_{number}"
            number += 1
            times = 0
            while True:
                end = ENDS[done % len(ENDS)]
                launched = end != "process"
                processes = 2 if launched and self.name != "ae.train" and done % 3 == 0 else 1
                started = time.monotonic()
                one = Run(self.command, out, launched=launched, processes=processes)
                status = one.wait(self.rng.uniform(0, self.seconds)) if done < kills else one.wait()
                if status is not None:
                    if not times:  # a whole run: the machine may be quicker now
                        self.seconds = min(self.seconds, time.monotonic() - started)
                    break
                one.kill(end, self.rng)
                done += 1
                times += 1
                self.fault_if(one.survivors(), f"killed {end}: these outlived it")
                self.fault_if(self.partial(out), f"killed {end}: these are not whole")
            self.fault_if(status, f"{one.log}: exit status")
            self.fault_if(differences(self.whole, contents(out)), f"{out}, killed {times} times")
            left = [name for name in sorted(os.listdir(one.temporary)) if not name.startswith(PYTHONS_OWN)]
            self.fault_if(left, f"{out}: temporary files")
            self.say(f"killed {times} times ({done} of {kills}), then done")
        self.fault_if(hidden(self.folder.parent / "cache"), "left in the cache")

    def partial(self, out: Path) -> list[str]:
        """Files that have their names and are not those of the undisturbed run."""
        found = []
        for name, content in contents(out).items():
            is_visible = not any(part.startswith(".") for part in Path(name).parts)
            if is_visible and Path(name).name not in self.command.grows and content != self.whole.get(name):
                found.append(name)
        return found

    def meet(self, number: int, other: dict[str, Any]) -> None:
        """Start two equal runs at once, and two of different seeds."""
        out = self.folder / f"equal_{number}"
        pair = [Run(self.command, out) for _ in range(2)]
        statuses = [one.wait() for one in pair]
        self.fault_if(0 not in statuses or not {*statuses} <= {0, 2}, f"{out}: exit statuses {statuses}")
        self.fault_if(differences(self.whole, contents(out)), str(out))
        out = self.folder / f"different_{number}"
        pair = [Run(self.command, out), Run(self.command, out, "seed=1")]
        mixed = [one.wait() for one in pair]
        self.fault_if(sorted(mixed) != [0, 2], f"{out}: exit statuses {mixed}")
        kept = self.whole if mixed[0] == 0 else other
        self.fault_if(differences(kept, contents(out)), str(out))
        self.say(f"two equal runs ended with {statuses}, two different ones with {mixed}")

    def fault_if(self, wrong: Any, what: str) -> None:
        if wrong:
            self.faults.append(f"{self.name}: {what}: {wrong}")
            print(f"WRONG {self.faults[-1]}", flush=True)

    def say(self, line: str) -> None:
        print(f"{self.name}: {line}", flush=True)


def contents(folder: Path) -> dict[str, Any]:
    """Relative name -> content of every file, hidden ones too, less what says where and how long it was made."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        name = str(path.relative_to(folder))
        read: Callable[[Path], Any] = READERS.get(path.suffix, Path.read_bytes)
        try:
            found[name] = read(path)
        except Exception as error:  # whatever it is, the file is not whole
            found[name] = f"cannot be read: {error}"
    return found


def _record(path: Path) -> Any:
    content = json.loads(path.read_text())
    content.pop("seconds", None)
    if "config" in content:
        content["config"].pop("output_folder", None)
    return content


def _checkpoint(path: Path) -> str:
    content = torch.load(path, weights_only=True)
    if isinstance(content, dict):
        content["config"] = content["config"] | {"log_dir": ""}
        del content["rng"]  # a resumed run draws once more from it, and nothing that is made depends on it
    return _text(content)


def _weights(path: Path) -> str:
    return _text(load_file(path))


def _text(content: Any) -> str:
    """Tensors and what holds them as text that is equal where they are."""
    if isinstance(content, torch.Tensor):
        return f"{content.dtype} {content.tolist()}"
    if isinstance(content, dict):
        return str({key: _text(value) for key, value in content.items()})
    if isinstance(content, list | tuple):
        return str([_text(value) for value in content])
    return repr(content)


READERS = {".json": _record, ".pt": _checkpoint, ".safetensors": _weights}


def hidden(folder: Path) -> list[str]:
    """Hidden files anywhere in a folder."""
    return sorted(str(path) for path in folder.rglob(".*"))


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of files that one of the two lacks, or that are not equal."""
    names = []
    for name in sorted({*wanted, *found}):
        if name not in found:
            names.append(f"{name} is missing")
        elif name not in wanted:
            names.append(f"{name} is too much")
        elif wanted[name] != found[name]:
            names.append(f"{name} differs")
    return names


def main() -> None:
    settings = load_settings(TrialSettings, None, sys.argv[1:])
    folder = Path(settings.folder).absolute()
    if folder.exists():
        raise UserError(f"folder {folder} is there already; name a new one")
    folder.mkdir(parents=True)
    rng = random.Random(settings.seed)
    faults = []
    for name, command in commands(folder).items():
        if settings.only and name not in settings.only:
            continue
        trials = Trials(name, command, folder, rng)
        trials.say(f"undisturbed in {trials.seconds:.0f} s")
        trials.killed(settings.kills)
        if settings.meetings:
            other = trials.undisturbed("other", "seed=1")
            for number in range(settings.meetings):
                trials.meet(number, other)
        faults += trials.faults
    if faults:
        print(f"{len(faults)} faults; what they left is in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)
    print("no fault")


if __name__ == "__main__":
    run(main)
