"""One video on several processes: the same video as on one, in shares as large and with bytes as many as promised.

Processes are two; `PROCESSES="2 3 4" python -m pytest -n 0 tests/test_group.py` tries more.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import generate_latent
from pipeline.build import load
from pipeline.config import load_config
from pipeline.generation import Generation
from pipeline.group import joined
from pipeline.pipeline import Pipeline
from pipeline.preflight import preflight
from pipeline.samples import Sample
from tests.close import assert_close
from tests.commands import command, launched
from tests.miniature import PARAMS, WAN_2_1, latentmem, make_family, write_config
from utils.errors import LOST, LOST_STATUS, UserError, run
from utils.launch import free_port
from utils.processes import share
from wan.exchange import bytes_of_forward, shares

COUNTS = [int(count) for count in os.environ.get("PROCESSES", "2").split()]
HEADS = replace(PARAMS, dim=144, num_heads=12)  # for 2, 3 and 4 processes
TOKENS = 27  # of a block: 9 a frame, which no two processes share evenly
FAMILY = replace(WAN_2_1, params=HEADS, height=48, width=48)
ROUNDINGS = 500  # as tests/miniature.py counts them for a width of 48: products of 144 terms have 12 more each
SAMPLES = [Sample("a red house"), Sample("a blue tree at night", 1)]
FULL_BANK = {"capacity": 6, "eviction": "redundancy", "device_gb": 0.001, "host_gb": 0.0004, "disk_gb": 0.1}


@pytest.fixture(scope="module")
def settings(root):
    return make_family(root, family=FAMILY) | {"model_kwargs": latentmem(root, "ae")}


def member(number: int, count: int, port: int, work: Callable, arguments: tuple) -> None:
    """Do a piece of work as one of the processes that a launcher started."""
    local = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "GPUS_PER_VIDEO": count}
    for name, value in (local | {"MASTER_ADDR": "localhost", "MASTER_PORT": port}).items():
        os.environ[name] = str(value)
    torch.set_num_threads(1)  # the threads of this one stayed behind
    work(*arguments)


def together(count: int, work: Callable, *arguments: object) -> list[int]:
    """Their exit statuses. They fork off this process, which has imported everything."""
    context = multiprocessing.get_context("fork")
    port = free_port()
    processes = []
    for number in range(count):
        process = context.Process(target=member, args=(number, count, port, work, arguments))
        process.start()
        processes.append(process)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def generated(pipeline: Pipeline) -> dict:
    """A batch of two: its latents, what was retrieved and forgotten, and the bytes of the bank."""
    generation = pipeline.start(SAMPLES)
    found = {"latents": [], "retrieved": [], "dropped": [], "bytes": []}
    for block in range(8):
        if block == 5:  # keys and values of other numbers of frames than a block's
            generation.switch(pipeline.prompt_embeds(["a red tree", "a house"]), "recache_sink")
        made = generation.step()
        found["latents"].append(made.latents)
        found["retrieved"].append(made.selection and made.selection.frames)
        found["dropped"].append(made.transfers.dropped)
        found["bytes"].append(made.memory_bytes)
    return found


def generate_together(settings: dict, folder: Path) -> None:
    found = preflight(load_config(overrides=settings))
    with joined(found.device) as group:
        pipeline = load(found, ["a red house"], group)
        forwards, leave = [], pipeline.model.leave
        pipeline.model.register_forward_pre_hook(lambda model, given: forwards.append((given[0].shape[1], False)))

        def noted(x: torch.Tensor, *given: object) -> None:
            forwards.append((x.shape[1], True))
            leave(x, *given)

        pipeline.model.leave = noted
        made = generated(pipeline)
        sent = {"sent": group.exchange.sent, "forwards": forwards}
        torch.save(made | sent, folder / f"{group.exchange.number}.pt")


@pytest.mark.parametrize("count, query", [*((count, "last") for count in COUNTS), (2, "draft")])
def test_several_processes_make_the_video_of_one(settings, tmp_path, count, query):
    settings = settings | {"bank": FULL_BANK, "model_kwargs": settings["model_kwargs"] | {"query": query}}
    alone = generated(load(load_config(overrides=settings)))
    assert together(count, generate_together, settings, tmp_path) == [0] * count
    assert any(alone["retrieved"]) and any(alone["dropped"])
    members = [torch.load(tmp_path / f"{number}.pt") for number in range(count)]
    for member in members:
        assert member["retrieved"] == alone["retrieved"] and member["dropped"] == alone["dropped"]
        assert member["bytes"] == [size // count for size in alone["bytes"]]
        for block, expected, first in zip(member["latents"], alone["latents"], members[0]["latents"], strict=True):
            assert torch.equal(block, first)
            assert_close(block, expected, ROUNDINGS)
    promised = 0
    for frames, leaves in members[0]["forwards"]:
        promised += bytes_of_forward(HEADS, 9 * frames, len(SAMPLES), count, 4, leaves)
    assert sum(member["sent"] for member in members) == promised > 0


def corpus_together(config: Path, dying: int | None) -> None:
    step = Generation.step

    def die(generation: Generation) -> object:
        is_second = generation.noise.samples[0][0] > 0
        if os.environ["RANK"] == str(dying) and is_second and generation.start == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(generation)

    Generation.step = die
    sys.argv = ["generate_latent.py", str(config)]
    run(generate_latent.main)


def test_a_lost_process_ends_the_run_and_the_same_command_goes_on(settings, tmp_path, monkeypatch):
    sizes = {"inference_iter": 2, "num_output_frames": 15, "max_video_saves": 1}
    config = write_config(tmp_path / "run.yaml", settings | sizes | {"output_folder": str(tmp_path / "group")})
    monkeypatch.setattr(sys, "argv", ["generate_latent.py", str(config), f"output_folder={tmp_path / 'alone'}"])
    generate_latent.main()  # first, so that the others find imported what it imports
    first, second = (tmp_path / "group" / f"latent_00000{number}.pt" for number in range(2))
    assert together(2, corpus_together, config, 1) == [LOST_STATUS, -signal.SIGKILL]
    assert first.exists() and not second.exists()
    made = first.stat().st_mtime_ns
    assert together(2, corpus_together, config, None) == [0, 0]
    assert first.stat().st_mtime_ns == made and (first.parent / "videos" / "latent_000000.mp4").exists()
    for path in (first, second):
        alone = torch.load(tmp_path / "alone" / path.name)
        assert_close(torch.load(path), alone, 1)  # kept in bfloat16, where rounding on the way is far below a step


@pytest.mark.parametrize(
    "body, status, line",
    [
        ("raise UserError('this one')", 2, "error: this one"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "error: process 2 of 2 was killed (SIGKILL), most likely"),
        ("raise LostPeer", LOST_STATUS, LOST),
    ],
)
def test_of_those_that_end_together_the_one_with_a_reason_says_it(tmp_path, body, status, line):
    lines = [
        "import os, signal",
        "from utils.errors import LostPeer, UserError, run",
        "def main():",
        "    if os.environ['RANK'] == '0':",
        "        raise LostPeer",
        f"    {body}",
        "run(main)",
    ]
    (tmp_path / "probe.py").write_text("\n".join(lines) + "\n")
    run = launched("probe", processes=2, folder=tmp_path)
    _, err = run.communicate()
    assert run.returncode == status
    assert err.startswith(line) and len(err.splitlines()) == 1


@pytest.fixture
def in_group(monkeypatch):
    """Make this process one of a group, as far as it can tell."""

    def enter(count: int, number: int = 0, processes: int | None = None) -> None:
        monkeypatch.setenv("GPUS_PER_VIDEO", str(count))
        monkeypatch.setenv("WORLD_SIZE", str(processes or count))
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("MASTER_ADDR", "localhost")

    return enter


def test_heads_that_do_not_divide_are_refused_with_numbers_that_do(settings, in_group):
    in_group(5)
    with pytest.raises(UserError, match=r"GPUS_PER_VIDEO=5 .* the 12 attention heads .* use 1, 2, 3, 4, 6 or 12"):
        preflight(load_config(overrides=settings))


@pytest.mark.parametrize("merge, fits", [("ema", True), ("ema_adaptive", False)])
def test_a_merge_that_looks_at_all_heads_is_refused(settings, in_group, merge, fits):
    in_group(2)
    native = {"local_attn_size": 9, "window_positions": True, "merge": merge}
    config = load_config(overrides=settings | {"model_kwargs": native})
    if fits:
        assert preflight(config)
        return
    with pytest.raises(UserError, match=r"model_kwargs.merge ema_adaptive looks at all of them together"):
        preflight(config)


def test_processes_that_do_not_know_of_each_other_are_refused(settings, in_group, monkeypatch):
    in_group(2)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match=r"GPUS_PER_VIDEO=2 .* start them by inference.sh"):
        preflight(load_config(overrides=settings))


def test_the_plan_counts_a_process_s_share(settings, in_group):
    config = load_config(overrides=settings)

    def plan() -> dict[str, int]:
        parts = preflight(config).footprint.phases[1].parts
        return {part.name.partition(" (")[0]: part.host for part in parts}

    alone = plan()
    in_group(2)
    first = plan()
    in_group(2, number=1)
    second = plan()
    bank = next(name for name in alone if name.startswith("keys and values"))
    assert 2 * first[bank] == 2 * second[bank] == alone[bank]
    text = 2 * HEADS.num_layers * HEADS.text_len * HEADS.dim * 4  # each process has all of the text's
    context = "context's keys and values"
    assert 2 * (first[context] - text) == alone[context] - text and second[context] == first[context]
    assert first["VAE's weights"] == alone["VAE's weights"] > second["VAE's weights"] == 0


def test_groups_share_the_prompts(in_group):
    parts = []
    for number in range(6):
        in_group(2, number, processes=6)
        parts.append(share(range(10)))
    assert parts[::2] == parts[1::2] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_tokens_are_shared_as_evenly_as_can_be():
    assert [shares(TOKENS, count) for count in (2, 3, 4)] == [[14, 13], [9, 9, 9], [7, 7, 7, 6]]


@pytest.mark.parametrize(
    "environment, line",
    [
        ({"GPUS_PER_VIDEO": "2", "NGPU": "3"}, "error: GPUS_PER_VIDEO=2 takes a multiple of 2 processes and this run"),
        ({"GPUS_PER_VIDEO": "two"}, "error: GPUS_PER_VIDEO=two is not a whole number of 1 or more"),
    ],
    ids=str,
)
def test_groups_that_cannot_be_are_one_line(environment, line):
    run = command("tinyworld", "native", launcher="inference.sh", **environment)
    _, err = run.communicate()
    assert run.returncode == 2 and err.startswith(line) and len(err.splitlines()) == 1


def test_a_training_takes_no_groups():
    run = command(launcher="train_ae_delta.sh", GPUS_PER_VIDEO="2")
    _, err = run.communicate()
    assert run.returncode == 2
    assert err == "error: GPUS_PER_VIDEO is for inference.sh and generate_latent.sh; unset it\n"
