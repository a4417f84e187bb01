"""The commands, run as a user runs them: what they write, how they resume, what they say to bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import generate_latent
import inference
from tests.commands import ROOT, command
from tests.miniature import HEIGHT, WIDTH, latentmem, write_config
from utils.errors import UserError
from utils.video import VideoWriter


@pytest.fixture(scope="module")
def config(root, settings):
    return write_config(root / "latentmem.yaml", settings | {"model_kwargs": latentmem(root, "ae")})


FILES = ["00000-0.json", "00000-0.memory.png", "00000-0.mp4"]  # of one finished video


def call(main, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    main()


def test_tinyworld_generates_through_its_launcher(tmp_path):
    """The shipped weights, through `inference.sh`: a video of the right length, its record and its plot."""
    run = command(
        "tinyworld", "latentmem", f"output_folder={tmp_path}", "num_output_frames=24", "inference_iter=1",
        "model_kwargs.recent_exclude=0", launcher="inference.sh",
    )  # fmt: skip
    out, err = run.communicate()
    assert run.returncode == 0, err
    assert "block 8/8" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    video = iio.imread(tmp_path / "00000-0.mp4")
    record = json.loads((tmp_path / "00000-0.json").read_text())
    assert len(video) == record["frames"] == 1 + 4 * 23
    assert video.shape[1:] == (record["config"]["height"], record["config"]["width"], 3)
    assert video.std() > 5
    assert [block["start"] for block in record["blocks"]] == list(range(0, 24, 3))
    assert record["blocks"][-1]["retrieved"]
    assert set(record["seconds"]) == {"generate", "decode", "write", "total"}
    assert len(record["weights"]["generator_ckpt"]["sha256"]) == 64


def test_two_processes_make_what_one_makes_and_finished_videos_stay(root, config, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    call(inference.main, monkeypatch, config, f"output_folder={one}")
    launch = [sys.executable, "-m", "utils.launch", "--nproc-per-node", "2", "inference"]
    subprocess.run([*launch, config, f"output_folder={two}"], cwd=ROOT, check=True)
    names = {"00000-0", "00002-0", "00003-0"}  # line 1 of the prompt file is blank
    assert {path.stem for path in two.glob("*.mp4")} == names
    for name in names:
        assert (one / f"{name}.mp4").read_bytes() == (two / f"{name}.mp4").read_bytes()
        blocks = [json.loads((folder / f"{name}.json").read_text())["blocks"] for folder in (one, two)]
        assert blocks[0] == blocks[1]
    # Resumed: only what is missing is made, and it is what it was.
    before = {path: path.stat().st_mtime_ns for path in one.glob("*.mp4")}
    wanted = (one / "00002-0.mp4").read_bytes()
    (one / "00002-0.mp4").unlink()
    call(inference.main, monkeypatch, config, f"output_folder={one}")
    assert (one / "00002-0.mp4").read_bytes() == wanted
    assert all(path.stat().st_mtime_ns == before[path] for path in one.glob("0000[03]-0.mp4"))


def test_a_video_of_another_run_is_refused_and_not_handed_back(config, tmp_path, monkeypatch):
    short = ["num_output_frames=3", "inference_iter=1", f"output_folder={tmp_path}"]
    call(inference.main, monkeypatch, config, *short)
    path, record = tmp_path / "00000-0.mp4", tmp_path / "00000-0.json"
    made = path.stat().st_mtime_ns
    call(inference.main, monkeypatch, config, *short, "batch_size=2", "save_with_index=true", "bank.device_gb=1")
    changes = {
        "seed=7": "seed 0, and this run has 7",
        "prompt=a blue tree": 'prompt "a red house", and this run has "a blue tree"',
        "model_kwargs.memory_size=2": "model_kwargs.memory_size 3, and this run has 2",
    }
    for override, words in changes.items():
        with pytest.raises(UserError) as error:
            call(inference.main, monkeypatch, config, *short, override)
        assert f"{path} was made with {words}; name another output_folder=" in str(error.value)
        assert "skip_existing=false" in str(error.value) and "\n" not in str(error.value)
    old = json.loads(record.read_text())
    weights = old["weights"] | {"generator_ckpt": {"file": "a", "sha256": "0" * 64}}
    for content, words in (
        (json.dumps(old | {"weights": weights}), f'weights.generator_ckpt "{"0" * 64}"'),
        ("{", "cannot be read"),
        ("[]", "is no record"),
        (None, "does not exist"),
    ):
        record.unlink() if content is None else record.write_text(content)
        with pytest.raises(UserError, match=words):
            call(inference.main, monkeypatch, config, *short)
    assert path.stat().st_mtime_ns == made
    del old["config"]["model_kwargs"]["policy"]  # a record of before there was this key
    record.write_text(json.dumps(old))
    call(inference.main, monkeypatch, config, *short)
    assert path.stat().st_mtime_ns == made
    call(inference.main, monkeypatch, config, *short, "seed=7", "skip_existing=false")
    assert path.stat().st_mtime_ns > made and json.loads(record.read_text())["seed"] == 7


def test_processes_that_start_apart_share_alike(config, tmp_path, monkeypatch):
    """The second of two processes starts when the first is done; every video is made once."""
    short = ["num_output_frames=3", f"output_folder={tmp_path}"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in (("0", {"00000-0", "00003-0"}), ("1", {"00000-0", "00002-0", "00003-0"})):
        monkeypatch.setenv("RANK", rank)
        call(inference.main, monkeypatch, config, *short)
        assert {path.stem for path in tmp_path.glob("*.mp4")} == names


def test_a_bounded_bank_says_that_it_forgets(config, tmp_path, monkeypatch, capsys):
    call(inference.main, monkeypatch, config, f"output_folder={tmp_path}", "inference_iter=2", "bank.capacity=4")
    said = [line for line in capsys.readouterr().out.splitlines() if "forg" in line]
    dropped = [
        sum(len(block["dropped"]) for block in json.loads((tmp_path / f"0000{n}-0.json").read_text())["blocks"])
        for n in (0, 2)
    ]
    assert said == [
        "00000-0.mp4: the memory is full (bank.capacity); it forgets frames from now on, 1 first",
        f"00000-0.mp4: the memory forgot {dropped[0]} frames",
        f"00002-0.mp4: the memory forgot {dropped[1]} frames",
    ]


def test_an_old_corpus_without_a_new_setting_is_resumed(config, tmp_path, monkeypatch):
    short = ["num_output_frames=3", "inference_iter=1", f"output_folder={tmp_path}"]
    call(generate_latent.main, monkeypatch, config, *short)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["config"]["model_kwargs"]["policy"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    call(generate_latent.main, monkeypatch, config, *short)
    with pytest.raises(UserError, match=r'model_kwargs\.policy null, and this run has "latentmem"'):
        call(generate_latent.main, monkeypatch, config, *short, "model_kwargs.policy=latentmem")


def test_a_killed_run_leaves_nothing_that_looks_finished_and_resumes(config, tmp_path, monkeypatch):
    run = subprocess.Popen(
        [sys.executable, "inference.py", config, f"output_folder={tmp_path}", "num_output_frames=240"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
    )  # fmt: skip
    while not list(tmp_path.glob(".*.mp4/.*.partial.mp4")) and run.poll() is None:
        time.sleep(0.05)  # until the first video is being written
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not list(tmp_path.glob("[!.]*"))
    call(inference.main, monkeypatch, config, f"output_folder={tmp_path}", "inference_iter=1")
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_a_corpus_is_the_same_for_any_number_of_processes_and_after_an_interruption(config, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    call(generate_latent.main, monkeypatch, config, f"output_folder={one}", "max_video_saves=1")
    run = command(f"output_folder={two}", launcher="generate_latent.sh", CONFIG=str(config), NGPU="2")
    _, err = run.communicate()
    assert run.returncode == 0, err
    names = [f"latent_{position:06d}.pt" for position in range(3)]
    assert sorted(path.name for path in one.glob("*.pt")) == sorted(path.name for path in two.glob("*.pt")) == names
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
    assert [path.name for path in (one / "videos").iterdir()] == ["latent_000000.mp4"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    latents = torch.load(one / names[0], weights_only=True)
    assert latents.shape == (24, 16, HEIGHT // 8, WIDTH // 8) and latents.dtype == torch.bfloat16
    killed = tmp_path / "killed"
    run = subprocess.Popen(
        [sys.executable, "generate_latent.py", config, f"output_folder={killed}"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
    )  # fmt: skip
    while not (killed / names[0]).exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert {path.name for path in killed.glob("[!.]*")} < {*names, "manifest.json"}
    call(generate_latent.main, monkeypatch, config, f"output_folder={killed}")
    assert all((killed / name).read_bytes() == (one / name).read_bytes() for name in (*names, "manifest.json"))
    with pytest.raises(UserError, match=r"manifest\.json was made with seed 0, and this run has 1; choose another"):
        call(generate_latent.main, monkeypatch, config, f"output_folder={one}", "seed=1")


def test_files_can_be_named_by_their_prompts(config, tmp_path, monkeypatch):
    call(inference.main, monkeypatch, config, f"output_folder={tmp_path}", "save_with_index=false",
         "num_samples=2", "inference_iter=1", "batch_size=2", "num_output_frames=3")  # fmt: skip
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["a red house-0.mp4", "a red house-1.mp4"]


@pytest.fixture(scope="module")
def bad(root, settings, tmp_path_factory) -> Path:
    """A folder of files that cannot be used."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "cut.safetensors").write_bytes(Path(settings["generator_ckpt"]).read_bytes()[:-100])
    (folder / "foreign.pt").write_bytes(b"not a checkpoint")
    (folder / "code.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    torch.save({"generator": {"a": torch.zeros(1)}}, folder / "other.pt")
    torch.save({"generator_ema": {"model.a": torch.zeros(1)}}, folder / "ema.pt")
    (folder / "blank.txt").write_text("\n \n")
    (folder / "file").write_text("")
    return folder


# Name -> (overrides, words that the one line must contain); BAD stands for the folder above.
FAULTS = {
    "missing checkpoint": (["generator_ckpt=no.pt"], ["no.pt", "does not exist", "README"]),
    "truncated checkpoint": (["generator_ckpt=BAD/cut.safetensors"], ["BAD/cut.safetensors", "truncated"]),
    "foreign checkpoint": (["generator_ckpt=BAD/foreign.pt"], ["BAD/foreign.pt"]),
    "checkpoint of another model": (["generator_ckpt=BAD/other.pt"], ["BAD/other.pt", "missing", "does not fit"]),
    "only EMA weights": (["generator_ckpt=BAD/ema.pt"], ["BAD/ema.pt", "use_ema: true"]),
    "no EMA weights": (["use_ema=true"], ["no EMA weights"]),
    "pickle with code": (["generator_ckpt=BAD/code.pt"], ["BAD/code.pt"]),
    "missing LoRA": (["lora_ckpt=no.pt", "adapter.rank=4"], ["no.pt", "lora_ckpt"]),
    "LoRA that is neither a file nor a list": (["lora_ckpt=[{file: no.pt}]"], ["lora_ckpt", "path, weight"]),
    "missing AE": (["model_kwargs.ae_ckpt=no.pt"], ["no.pt"]),
    "AE of another size": (["height=64"], ["miniature_ae.pt"]),
    "missing prompts": (["data_path=no.txt"], ["no.txt", "prompt="]),
    "blank prompts": (["data_path=BAD/blank.txt"], ["blank.txt", "no prompts"]),
    "frame count": (["num_output_frames=25"], ["25", "24 or 27"]),
    "odd size": (["height=40"], ["height 40", "16"]),
    "unwritable folder": (["output_folder=BAD/file"], ["BAD/file"]),
    "unknown setting": (["model_kwargs.memory_siz=3"], ["memory_siz'", "did you mean 'model_kwargs.memory_size'"]),
    "wrong type": (["seed=red"], ["seed", "red"]),
    "unknown method": (["model_kwargs.compression_method=max"], ["max", "avg_pool"]),
    "rising steps": (["denoising_step_list=[500,750]"], ["500"]),
    "missing model folder": (["model_name=nowhere"], ["nowhere"]),
    "impossible layout": (["model_kwargs.memory_size=9"], ["memory_size", "at most 4"]),
    "no frames a block": (["num_frame_per_block=0"], ["num_frame_per_block", "is 0"]),
    "no shift": (["model_kwargs.timestep_shift=0"], ["model_kwargs.timestep_shift", "is 0.0"]),
    "negative shift": (["model_kwargs.timestep_shift=-1"], ["model_kwargs.timestep_shift", "is -1.0"]),
    "broken list": (["denoising_step_list=[1000,,500]"], ["denoising_step_list=[1000,,500]"]),
    "unknown policy": (["model_kwargs.policy=nativ"], ["nativ", "did you mean 'native'"]),
    "no GPU": (["device=cuda"], ["cuda"]),
    "not enough memory": (["num_output_frames=300000000"], ["GB", "num_output_frames"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_before_anything_is_written(fault, config, bad, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    overrides, words = ([text.replace("BAD", str(bad)) for text in texts] for texts in FAULTS[fault])
    out = tmp_path / "videos"
    with pytest.raises(UserError) as error:
        call(inference.main, monkeypatch, config, f"output_folder={out}", *overrides)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not out.exists() or not list(out.iterdir())


def test_a_video_appears_only_when_it_is_whole(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", (32, 16), fps=16)
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((16, 32, 3), 40, np.uint8)
    writer.write(frames)
    assert not (tmp_path / "a.mp4").exists()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert np.abs(iio.imread(tmp_path / "a.mp4").astype(int) - frames).max() <= 8
    discarded = VideoWriter(tmp_path / "b.mp4", (32, 16), fps=16)
    discarded.write(frames)
    discarded.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
