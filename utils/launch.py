"""Start a program as one process or several: `python -m utils.launch --nproc-per-node N MODULE [arguments]`.

The processes get the environment that `torchrun` gives (RANK, LOCAL_RANK, WORLD_SIZE, ...), and end together: when one
fails, on Ctrl-C, SIGTERM or SIGHUP, or when this process is gone. Lines that several of them have to say at the end
are printed once. NNODES, NODE_RANK, MASTER_ADDR and PORT join several machines; one machine needs none of them.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time

from utils.errors import LOST, LOST_STATUS, UserError, run
from utils.processes import per_video, require_whole_groups, whole_number
from utils.stop import Stopped, stop

GRACE = 30.0  # seconds that a process has to end when it is told to
LAST_WORDS = 3.0  # seconds that a process has to say why it ends when another one already lost it


def main() -> None:
    flag, processes, module, *arguments = sys.argv[1:]
    assert flag == "--nproc-per-node", flag
    check_gpus(os.environ.get("GPU", ""))
    ranks = rank_environments(processes)
    sys.exit(Launch(module, arguments, ranks).run())


def rank_environments(processes: str) -> list[dict[str, str]]:
    """What each process of this machine finds in its environment.

    Args:
        processes: how many, as typed.
    """
    per_video()  # the number of processes may follow it, and is not to blame
    local = whole_number("NGPU", processes, 1)
    nodes = whole_number("NNODES", os.environ.get("NNODES") or "1", 1)
    node = whole_number("NODE_RANK", os.environ.get("NODE_RANK") or "0", 0, nodes - 1)
    port = whole_number("PORT", os.environ.get("PORT") or "29500", 1, 65535)
    require_whole_groups(nodes * local)
    if nodes == 1:
        port = free_port()
    elif node == 0:
        require_free(port)
    shared = {
        "WORLD_SIZE": nodes * local,
        "LOCAL_WORLD_SIZE": local,
        "GROUP_RANK": node,
        "MASTER_ADDR": os.environ.get("MASTER_ADDR") or "localhost",
        "MASTER_PORT": port,
    }
    if nodes * local > 1:
        shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or 1
    parts = mig_parts(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    environments = []
    for i in range(local):
        own = {"RANK": node * local + i, "LOCAL_RANK": i}
        if parts:
            own |= {"LOCAL_RANK": 0, "CUDA_VISIBLE_DEVICES": parts[i % len(parts)]}
        environments.append({name: str(value) for name, value in (shared | own).items()})
    return environments


class Launch:
    """The processes of one command.

    Args:
        module: runs as a program in each.
        arguments: of the program.
        ranks: what each finds in its environment.
    """

    def __init__(self, module: str, arguments: list[str], ranks: list[dict[str, str]]) -> None:
        self.lines, self.hand = os.pipe()  # where the processes put the last thing they have to say
        worker = [sys.executable, "-m", "utils.worker", str(os.getpid()), str(self.hand)]
        self.command = [*worker, module, *arguments]
        self.ranks = ranks
        self.workers: list[subprocess.Popen] = []
        self.unread = b""
        self.said: set[str] = set()

    def run(self) -> int:
        """Start them and wait; the exit status is that of the first one that fails."""
        try:
            with stop.held():
                for rank in self.ranks:
                    worker = subprocess.Popen(self.command, env=os.environ | rank, pass_fds=[self.hand])
                    self.workers.append(worker)
            status = self._wait()
        except Stopped:
            self._end(stop.signal)
            self._print()
            if not self.said:
                self._say(stop.line())
            return stop.status
        finally:
            self._end(signal.SIGKILL)
        self._print()
        return status

    def _wait(self) -> int:
        """Until all are done, or one has failed and the others are ended.

        One that lost another has not failed of itself: the other may still be at its last words.
        """
        left = list(self.workers)
        lost: list[subprocess.Popen] = []
        since = 0.0
        while left:
            self._print(wait=0.1)
            for worker in list(left):
                status = worker.poll()
                if status is None:
                    continue
                left.remove(worker)
                if status == LOST_STATUS:
                    lost.append(worker)
                    since = time.monotonic()
                elif status != 0:
                    return self._fail(worker, status)
            if lost and (not left or time.monotonic() - since > LAST_WORDS):
                return self._fail(lost[0], LOST_STATUS)
        return 0

    def _fail(self, worker: subprocess.Popen, status: int) -> int:
        self._print()
        if status == LOST_STATUS:
            self._say(LOST)
        if status < 0:
            self._say(killed(self.workers.index(worker), len(self.workers), -status))
            status = 128 - status
        with stop.held():
            self._end(signal.SIGTERM)
        self._print(hide="stopped")  # the others were ended for this failure, nobody asked them to stop
        return status

    def _end(self, number: int) -> None:
        """Send a signal to those at work, and see that they end."""
        for worker in self.workers:
            worker.send_signal(number)
        last = time.monotonic() + GRACE
        for worker in self.workers:
            try:
                worker.wait(max(0, last - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _print(self, wait: float = 0.0, hide: str | None = None) -> None:
        """Print what the processes handed over, each line once."""
        while select.select([self.lines], [], [], wait)[0]:
            self.unread += os.read(self.lines, 1 << 16)
            wait = 0.0
        *lines, self.unread = self.unread.split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if text != LOST and (hide is None or not text.startswith(hide)):
                self._say(text)

    def _say(self, line: str) -> None:
        """Print a line unless it was; of lines that tell of a stop, the first."""
        key = line.partition(":")[0] if line.startswith("stopped") else line
        if key not in self.said:
            self.said.add(key)
            print(line, file=sys.stderr, flush=True)


def run_module(*words: str) -> None:
    """Run `python -m words` and wait; where it fails, it has said why, and this process ends with its status."""
    status = subprocess.run([sys.executable, "-m", *words], check=False).returncode
    if status < 0:
        raise UserError(f"{words[0]}: {killed(0, 1, -status).removeprefix('error: ')}")
    if status:
        sys.exit(status)


def killed(process: int, processes: int, number: int) -> str:
    """What to say of a process that a signal ended."""
    who = "the process" if processes == 1 else f"process {process + 1} of {processes}"
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        why = "most likely because the machine's memory ran out; make less at once, or start fewer processes with NGPU="
        return f"error: {who} was killed ({name}), {why}"
    return f"error: {who} was ended by {name}; please report it among the project's issues"


def check_gpus(gpus: str) -> None:
    """Refuse a list in which something is no GPU's number and no name that `nvidia-smi -L` prints."""
    if gpus and not re.fullmatch(r"(\d+|(GPU|MIG)-[\w/-]+)(,(\d+|(GPU|MIG)-[\w/-]+))*", gpus):
        raise UserError(f"GPU={gpus} is not a list such as 0 or 0,1 or of names that nvidia-smi -L prints")


def mig_parts(gpus: str) -> list[str]:
    """The parts of GPUs (MIG) in a list of those alone: of several, CUDA shows a process only the first."""
    names = gpus.split(",")
    return names if all(name.startswith("MIG-") for name in names) else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def require_free(port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        raise UserError(f"port {port} is taken on this machine; choose another with PORT= on all of them") from error


if __name__ == "__main__":
    run(main)
