"""Training the retrieval encoder: steps, resuming, reading only what is used, bad input."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ae import dataset, train
from ae.dataset import Batches, LatentChunks, scan
from ae.model import load_encoder
from ae.settings import TrainSettings, course, load_train_settings
from ae.trainer import Trainer
from tests.commands import ROOT, launched
from utils.errors import UserError, run
from utils.settings import load_settings

GOLDENS = ROOT / "tests/goldens"
# Each of these biases is added right before a norm over single channels, which takes it away again. Its gradient is
# rounding noise, and AdamW makes steps of up to lr of it.
CANCELLED = (
    *("encoder.conv_stack.0.bias", "encoder.conv_stack.4.bias", "decoder.upsample_stack.1.bias"),
    *("block.2.bias", "encoder.conv_stack.7.block.5.bias"),
)
TINY = {"in_channels": 16, "spatial_h": 4, "spatial_w": 6, "latent_dim": 8, "hidden_dims": [8], "seq_len": 4}


def write_corpus(folder: Path, files: int, frames: int = 9, shape=(16, 4, 6)) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(files):
        generator = torch.Generator().manual_seed(i)
        torch.save(torch.randn(frames, *shape, generator=generator).bfloat16(), folder / f"latent_{i:06d}.pt")
    return folder


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "data", 20)


@pytest.fixture
def arguments(tmp_path, corpus):
    """Command-line arguments of a tiny training, which override a config file."""
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(TINY | {"num_workers": 0, "batch_size": 8, "epochs": 2, "gpu": 0}))
    return [str(config), f"data_dir={corpus}", f"log_dir={tmp_path / 'runs'}"]


def trained(arguments: list[str], monkeypatch) -> int:
    """Run the entry point in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["ae.train", *arguments])
    try:
        run(train.main)
    except SystemExit as end:
        return end.code
    return 0


def test_two_steps_equal_the_recording(tmp_path, monkeypatch):
    recorded = load_file(GOLDENS / "ae.safetensors")
    facts = json.loads((GOLDENS / "ae_train2steps.json").read_text())["config"]
    write_corpus(tmp_path / "data", 3, 8, (16, 8, 12))
    names = ("seq_len", "in_channels", "spatial_h", "spatial_w", "latent_dim", "hidden_dims", "lr", "weight_decay")
    overrides = {name: facts[name] for name in names} | {"data_dir": str(tmp_path / "data"), "val_split": 0.0}
    settings = load_settings(TrainSettings, None, overrides | {"log_dir": str(tmp_path), "num_workers": 0})
    trainer = Trainer.start(settings)
    trainer.model.load_state_dict({key[2:]: value for key, value in recorded.items() if key.startswith("w.")})
    trainer.model.train()
    for chunks in (recorded["chunk"], recorded["chunk"].flip(0)):
        trainer._step(chunks)
    expected = load_file(GOLDENS / "ae_train2steps.safetensors")
    for key, value in trainer.model.state_dict().items():
        # AdamW moves a weight by up to lr a step, however small its gradient. Two steps with opposite signs are 4 lr
        # apart. Other gradients are right to 1e-5 of the largest one in float32, so that a gradient a thousandth of
        # it moves its weight by up to 1% of lr differently: 7e-6 was seen between kernels, a fifth of lr is allowed.
        tolerance = 4 * facts["lr"] if key.endswith(CANCELLED) else facts["lr"] / 5
        torch.testing.assert_close(value, expected[f"after.{key}"], rtol=0, atol=tolerance)


def test_killed_at_a_random_moment_and_resumed_it_trains_the_same(arguments, tmp_path, monkeypatch):
    epochs = 6
    more = [f"epochs={epochs}", "save_steps=1"]
    assert trained([*arguments, *more, "tag=whole"], monkeypatch) == 0
    lines = random.randint(1, epochs)  # said lines before the kill; what is under way then, is left to the machine
    command = [sys.executable, "-m", "ae.train", *arguments, *more, "tag=killed", "num_workers=1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(lines + 1):
        process.stdout.readline()
    process.kill()
    process.communicate()  # comes back when nobody holds the pipe any more: the loader's process has ended too
    assert trained([*arguments, *more, "tag=killed", "num_workers=1"], monkeypatch) == 0
    whole, killed = tmp_path / "runs/whole", tmp_path / "runs/killed"
    assert (whole / "curve.csv").read_bytes() == (killed / "curve.csv").read_bytes(), f"killed after {lines} lines"
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (whole, killed))
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
        assert a["progress"] == b["progress"]


def test_a_stop_within_an_epoch_resumes_at_the_next_batch(arguments, monkeypatch, tmp_path):
    assert trained([*arguments, "tag=whole"], monkeypatch) == 0
    step, calls = Trainer._step, []

    def interrupted(self, chunks):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return step(self, chunks)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    assert trained([*arguments, "tag=cut", "save_steps=1"], monkeypatch) == 130
    state = torch.load(tmp_path / "runs/cut/last.pt", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["batch"], state["epoch"]) == (1, 1, 0)
    monkeypatch.setattr(Trainer, "_step", step)
    assert trained([*arguments, "tag=cut"], monkeypatch) == 0
    assert (tmp_path / "runs/whole/curve.csv").read_bytes() == (tmp_path / "runs/cut/curve.csv").read_bytes()


def test_two_processes_train_what_one_does(arguments, tmp_path, monkeypatch):
    run = launched("ae.train", *arguments, "tag=two", processes=2, folder=ROOT)
    _, said = run.communicate()
    assert (run.returncode, said) == (0, "")
    assert trained([*arguments, "tag=one"], monkeypatch) == 0
    rows = [(tmp_path / f"runs/{tag}/curve.csv").read_text().splitlines()[1:] for tag in ("one", "two")]
    one, two = (torch.tensor([[float(x) for x in row.split(",")] for row in table]) for table in rows)
    # float32 losses near 1. Gradients are summed in another order, and AdamW turns rounding in the smallest of them
    # into steps of up to lr, 3e-4, of a few weights.
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_checkpoints_have_the_published_form_and_load_for_inference(arguments, monkeypatch, tmp_path, capsys):
    assert trained([*arguments, "save_every=1"], monkeypatch) == 0
    folder = tmp_path / "runs/tiny"
    assert {p.name for p in folder.iterdir()} == {
        *("best.pt", "last.pt", "epoch_0001.pt", "epoch_0002.pt", "encoder.safetensors", "curve.csv", "curve.png")
    }
    content = torch.load(folder / "best.pt", weights_only=True)
    published = torch.load(GOLDENS / "ae_ckpt.pt", weights_only=True)
    assert published.keys() <= content.keys()
    assert published["optimizer"].keys() == content["optimizer"].keys()
    assert content["config"]["hidden_dims"] == [8]
    x = torch.randn(16, 4, 6)
    codes = [load_encoder(folder / f, latent_shape=x.shape).encode(x) for f in ("best.pt", "encoder.safetensors")]
    assert codes[0].shape == (8,)
    assert torch.equal(*codes)
    assert "sets gpu, which changes nothing here" in capsys.readouterr().out


def test_a_published_checkpoint_can_be_trained_on(tmp_path, arguments, monkeypatch, capsys):
    write_corpus(tmp_path / "data", 20, shape=(16, 8, 12))
    sizes = ["spatial_h=8", "spatial_w=12", "latent_dim=32", "hidden_dims=[16,32]"]
    assert trained([*arguments, *sizes, f"resume={GOLDENS / 'ae_ckpt.pt'}"], monkeypatch) == 0
    assert "at epoch 2, batch 1" in capsys.readouterr().out


def test_one_zero_weight_leaves_reconstruction_only():
    def weights(**given):
        settings = load_settings(TrainSettings, None, given)
        return settings.delta_weight, settings.smooth_weight

    assert weights() == (1, 1)
    assert weights(delta_weight=0.0) == (0, 0)
    assert weights(delta_weight=0.0, smooth_weight=1.0) == (0, 1)
    assert weights(smooth_weight=0.0) == (1, 0)


@pytest.mark.parametrize(("name", "smooth"), [("ae_delta", 1.0), ("base_ae", 0.0), ("tinyworld_ae", 0.01)])
def test_shipped_configs_are_valid(name, smooth):
    settings = load_train_settings(f"ae/configs/{name}.yaml")
    assert (settings.tag, settings.smooth_weight) == (name, smooth)


def test_the_course_is_what_decides_the_outcome():
    assert set(course()) == {
        *("seed", "val_split", "data_percentage", "seq_len", "batch_size", "lr", "weight_decay", "grad_clip"),
        *("delta_weight", "delta_margin", "delta_window", "smooth_weight", "use_amp", "amp_dtype"),
    }


@pytest.mark.parametrize(
    ("typed", "overrides"),
    [
        ("x.yaml lr=0.1 tag=a", ["lr=0.1", "tag=a"]),
        ("--config x.yaml --data_dir D", ["data_dir=D"]),
        ("--config=x.yaml --data_dir=D lr=1", ["data_dir=D", "lr=1"]),
        ("--data_dir D --disable_wandb --config x.yaml", ["data_dir=D", "disable_wandb=true"]),
        ("--config x.yaml --hidden_dims 32 64 --gpu 0", ["hidden_dims=[32,64]", "gpu=0"]),
        ("--lr 1 --config x.yaml lr=2", ["lr=1", "lr=2"]),
        ("--config x.yaml --smooth_weight -1", ["smooth_weight=-1"]),
        ("--config x.yaml --data_dir runs/a=b", ["data_dir=runs/a=b"]),
        ("--config x.yaml --disable_wandb lr=1", ["disable_wandb=true", "lr=1"]),
    ],
)
def test_flags_and_settings_say_the_same(typed, overrides):
    assert train.parse(typed.split()) == ("x.yaml", overrides)


def test_published_flags_train(arguments, corpus, tmp_path, monkeypatch, capsys):
    flags = ["--config", arguments[0], "--data_dir", str(corpus), "--log_dir", str(tmp_path / "flags"), "--gpu", "0"]
    assert trained(flags, monkeypatch) == 0
    assert (tmp_path / "flags/tiny/encoder.safetensors").is_file()
    assert "epoch 2/2" in capsys.readouterr().out


def test_batches_are_the_same_for_any_number_of_processes_and_resumable():
    whole = Batches(10, 4, seed=1)
    shards = [Batches(10, 4, seed=1, rank=rank, world=2) for rank in range(2)]
    for epoch in (0, 1):
        for sampler in (whole, *shards):
            sampler.epoch = epoch
        batches = list(whole)
        assert sorted(file for batch in batches for file, _ in batch) == list(range(10))
        parts = zip(*(list(shard) for shard in shards), strict=True)
        assert [sorted(a + b) for a, b in parts] == [sorted(batch) for batch in batches]
        whole.skip = 2
        assert list(whole) == batches[2:]
        whole.skip = 0
    first = list(whole)
    whole.epoch = 0
    assert list(whole) != first


def test_an_uneven_last_batch_is_filled_up_for_every_process():
    shards = [list(Batches(5, 4, seed=0, rank=rank, world=4)) for rank in range(4)]
    assert [[len(batch) for batch in shard] for shard in shards] == [[1, 1]] * 4


def test_the_split_holds_out_files_and_forgets_none(corpus):
    found = scan(corpus, (16, 4, 6), 4)
    used, held = found.split(0.1, seed=3)
    assert (len(used), len(held)) == (18, 2)
    assert {*used, *held} == set(found.files)
    assert found.split(0.1, seed=3) == (used, held) != found.split(0.1, seed=4)
    assert [len(part) for part in found.split(0.1, seed=3, share=0.5)] == [9, 1]
    assert found.split(0.0, seed=3)[1] == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts resident pages through Linux's smaps")
def test_the_loader_reads_only_the_frames_it_uses(tmp_path, monkeypatch):
    frames, shape = 192, (16, 60, 104)
    path = tmp_path / "latent_000000.pt"
    torch.save(torch.ones(frames, *shape, dtype=torch.bfloat16), path)
    opened = []
    monkeypatch.setattr(dataset, "open_latents", lambda p, open_latents=dataset.open_latents: held(open_latents(p)))

    def held(latents):
        opened.append(latents)  # keeps the mapping, to count its pages
        return latents

    chunk, complaint = LatentChunks([path], 8)[0, 20]
    assert (tuple(chunk.shape), chunk.dtype, complaint) == ((8, *shape), torch.float32, "")
    maps = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    resident = sum(int(part.split("Rss:")[1].split()[0]) for part in maps) * 1024
    used = 8 * 16 * 60 * 104 * 2
    assert used <= resident <= used + 6 * 2**20 < path.stat().st_size / 4  # the page cache may map 2 MiB at once


def spoil(folder: Path) -> None:
    """Three bad files: truncated, of another shape, and with a NaN in every frame."""
    paths = sorted(folder.glob("*.pt"))
    paths[0].write_bytes(paths[0].read_bytes()[:2000])
    torch.save(torch.zeros(9, 16, 5, 6), paths[1])
    torch.save(torch.full((9, 16, 4, 6), torch.nan), paths[2])


def test_bad_files_are_named_counted_and_skipped(arguments, corpus, monkeypatch, capsys):
    spoil(corpus)
    assert trained([*arguments, "val_split=0"], monkeypatch) == 0
    out = capsys.readouterr().out
    for i in range(3):
        assert out.count(f"latent_{i:06d}.pt") == 1
    assert "3 bad files were skipped" in out


@pytest.mark.parametrize("bad", range(3))
def test_strict_stops_at_a_bad_file(bad, arguments, corpus, monkeypatch, capsys):
    spoil(corpus)
    for i in {0, 1, 2} - {bad}:
        (corpus / f"latent_{i:06d}.pt").unlink()
    assert trained([*arguments, "val_split=0", "strict=true"], monkeypatch) == 2
    assert f"latent_{bad:06d}.pt" in one_line(capsys)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_of_nan_is_refused_in_one_line(workers, arguments, corpus, monkeypatch, capsys):
    for path in corpus.glob("*.pt"):
        torch.save(torch.full((9, 16, 4, 6), torch.nan), path)
    assert trained([*arguments, f"num_workers={workers}"], monkeypatch) == 2
    assert one_line(capsys).startswith("error: no chunk of any file can be used")


def test_fewer_files_than_a_batch_train_and_say_so(arguments, monkeypatch, capsys):
    assert trained([*arguments, "batch_size=128"], monkeypatch) == 0
    out = capsys.readouterr().out
    assert "fewer files than batch_size 128: each epoch is one batch of 18" in out
    assert "epoch 2/2" in out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data_dir=/nowhere"], "/nowhere is not a folder"),
        (["data_dir=."], "holds no latent_"),
        (["spatial_h=60"], "16 x 60 x 6"),
        (["seq_len=10"], "has 9 frames and seq_len is 10"),
        (["seq_len=1000000000"], "has 9 frames and seq_len is 1000000000"),
        (["latent_dims=9"], "did you mean 'latent_dim'"),
        (["lr=0"], "'lr' is 0.0; it must be above 0"),
        (["lr=nan"], "'lr' is nan; it must be a finite number"),
        (["lr=1e300"], "'lr' is 1e+300; it must be at most 1"),
        (["grad_clip=inf"], "'grad_clip' is inf; it must be a finite number"),
        (["delta_margin=-2"], "'delta_margin' is -2.0; it must be at least -1"),
        (["val_split=1"], "'val_split' is 1.0; it must be below 1"),
        (["num_workers=-1"], "'num_workers' is -1; it must be at least 0"),
        (["hidden_dims=[]"], "'hidden_dims' is empty"),
        (["hidden_dims=[8,0]"], "'hidden_dims' is 0; it must be at least 1"),
        (["hidden_dims=[8,8,8,8]"], "'hidden_dims' has 4 levels"),
        (["latent_dim=1000000000000"], "'latent_dim' is 1000000000000; it must be at most"),
        (["latent_dim=16384", "hidden_dims=[16384,16384]"], "GB of memory are free; choose smaller sizes"),
        (["epochs=1000000000", "save_every=1"], "free some space"),
        (["seed=-1"], "'seed' is -1; it must be at least 0"),
        (["tracker=wand"], "did you mean 'wandb'"),
        (["amp_dtype=fp8"], "fp16, bf16"),
        (["resume=none.pt"], "none.pt does not exist"),
        ([f"resume={GOLDENS / 'ae_ckpt.pt'}"], "was trained with spatial_h 8 and the config says 4"),
        (["log_dir=/proc"], "output folder /proc/tiny"),
        (["more.yaml"], "give one"),
    ],
)
def test_bad_input_is_one_line_and_status_2(overrides, message, arguments, monkeypatch, capsys):
    assert trained([*arguments, *overrides], monkeypatch) == 2
    assert message in one_line(capsys)


def test_a_run_is_not_continued_with_other_settings_or_files(arguments, corpus, tmp_path, monkeypatch, capsys):
    assert trained(arguments, monkeypatch) == 0
    assert trained([*arguments, "lr=0.1"], monkeypatch) == 2
    assert "was trained with lr 0.0003 and the config says 0.1" in one_line(capsys)
    write_corpus(corpus, 21)
    assert trained(arguments, monkeypatch) == 2
    assert "was trained on other files" in one_line(capsys)
    last = tmp_path / "runs/tiny/last.pt"
    assert trained([*arguments, "lr=0.1", "epochs=3", f"resume={last}"], monkeypatch) == 0
    assert torch.load(last, weights_only=True)["optimizer"]["param_groups"][0]["lr"] == 0.1


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("optimizer"), "optimizer is wrong or missing"),
        (lambda content: content.update(config=[1]), "config is wrong or missing"),
        (lambda content: content.update(progress={"epochs": 1}), "does not fit the model"),
        (lambda content: content.update(rng=torch.zeros(3, dtype=torch.uint8)), "does not fit the model"),
        (lambda content: content["model"].popitem(), "does not fit the model"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_in_one_line(
    change, message, arguments, tmp_path, monkeypatch, capsys
):
    assert trained([*arguments, "epochs=1"], monkeypatch) == 0
    last = tmp_path / "runs/tiny/last.pt"
    content = torch.load(last, weights_only=True)
    change(content)
    torch.save(content, last)
    assert trained(arguments, monkeypatch) == 2
    assert message in one_line(capsys)


def damaged_latents(folder: Path) -> list[str]:
    """Files that are no latents, each in another way; their names."""
    good = torch.zeros(9, 16, 4, 6)
    torch.save(good, folder / "latent_whole.pt")
    whole = (folder / "latent_whole.pt").read_bytes()
    pickled = {
        "dictionary": {"latents": good},
        "integers": good.long(),
        "flat": good.flatten(),
        "sparse": good.to_sparse(),
        "meta": good.to("meta"),
        "without_frames": good[:0],
        "infinite": good + torch.inf,
    }
    for name, content in pickled.items():
        torch.save(content, folder / f"latent_{name}.pt")
    of_two_disks = bytearray(whole)
    locator = whole.rindex(b"PK\x06\x07")  # of the archive's directory; the number of its disk follows
    of_two_disks[locator + 4] = 1
    raw = {
        "empty": b"",
        "text": b"hello",
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "cut": whole[: len(whole) // 2],
        "of_two_disks": bytes(of_two_disks),
        "code": b"cos\nsystem\n(S'exit 1'\ntR.",
    }
    for name, content in raw.items():
        (folder / f"latent_{name}.pt").write_bytes(content)
    (folder / "latent_link.pt").symlink_to("nowhere")
    (folder / "latent_folder.pt").mkdir()
    (folder / "latent_whole.pt").unlink()
    return [*pickled, *raw, "link", "folder"]


def test_every_kind_of_damaged_file_is_named_in_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    names = damaged_latents(tmp_path / "data")
    for name in names:
        with pytest.raises(UserError, match=f"latent_{name}.pt") as error:
            path = tmp_path / f"data/latent_{name}.pt"
            dataset._fits(dataset.open_latents(path), path, (16, 4, 6), 4)
            LatentChunks([path], 4)[0, 0]
        assert "\n" not in str(error.value)


def test_latents_of_the_old_format_are_read(tmp_path):
    latents = torch.randn(9, 16, 4, 6)
    torch.save(latents, tmp_path / "latent_0.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(dataset.open_latents(tmp_path / "latent_0.pt"), latents)


@pytest.mark.parametrize("tag", ["a/../../b", "../b", "/b"])
def test_a_tag_that_leads_out_of_the_folder_is_refused(tag):
    with pytest.raises(UserError, match="leads out of log_dir"):
        load_train_settings("ae/configs/tinyworld_ae.yaml", [f"tag={tag}"])
