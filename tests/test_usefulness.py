"""Usefulness: gains are what the backbone's error loses, an encoder learns them, and it may ask for nothing."""

import json

import numpy as np
import pytest
import torch

from ae import train as encoder_train
from ae.usefulness import load_usefulness
from evaluation.retrieval import __main__ as evaluation
from evaluation.retrieval import gains
from pipeline import load
from pipeline.retrieval import Retrieval
from pipeline.samples import Sample
from tests.miniature import latentmem, make_family, write_config
from tests.test_evaluation_retrieval import pan
from utils.errors import UserError

SIZES = ["spatial_h=8", "spatial_w=12", "hidden_dims=[8]", "latent_dim=16", "past=3", "batch_size=16", "lr=0.01"]


def use(monkeypatch, module, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    module.main()


def write_clips(folder, count: int) -> None:
    """Panning clips, in which what gains is a frame near the place six frames on, by the last two frames' motion."""
    scene = pan(48)[0][[24, 0]]  # the two ends of a scene that all clips pass along
    scene = torch.cat([scene[1], scene[0]], -1)
    for number in range(count):
        phase = np.arange(48) + 7 * number
        camera = 12 - np.abs(12 - phase % 24)
        latents = torch.stack([scene[:, :, place : place + 12] for place in camera])
        blocks = []
        for start in range(24, 48, 3):
            leads_to = camera[start - 1] + 6 * (camera[start - 1] - camera[start - 2])
            frames = list(range(1, start - 16, 2))
            worth = 1.0 - np.abs(camera[frames] - leads_to) / 3
            blocks.append({"start": start, "frames": frames, "gains": worth.clip(-0.2).tolist()})
        torch.save(latents, folder / f"latent_{number:06d}.pt")
        (folder / f"latent_{number:06d}.gains.json").write_text(json.dumps({"blocks": blocks}))


def test_an_encoder_of_usefulness_finds_what_helps_where_likeness_does_not(tmp_path, monkeypatch, capsys):
    write_clips(tmp_path, 8)
    told = [
        "ae/configs/utility.yaml",
        f"data_dir={tmp_path}",
        f"log_dir={tmp_path}",
        "epochs=12",
        "val_split=0.25",
        *SIZES,
    ]
    use(monkeypatch, encoder_train, *told)
    trained = tmp_path / "utility" / "encoder.safetensors"
    whole = trained.read_bytes()
    use(monkeypatch, encoder_train, *told)  # all epochs are done
    assert trained.read_bytes() == whole
    with pytest.raises(UserError, match="of a training with other settings"):
        use(monkeypatch, encoder_train, *told, "temperature=1")
    rules = ["--data", tmp_path, "--ckpt", trained, "--out", tmp_path / "out", "--memory", 3, "--local", 12]
    use(monkeypatch, evaluation, *rules)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rules"]
    gained = {name: rule["metrics"]["gain"][0] for name, rule in report.items()}
    found = {name: rule["metrics"]["useful"][0] for name, rule in report.items()}
    assert gained["useful"] > max(gained["avg_pool"], gained["random"]) + 0.2
    assert found["useful"] > max(found["avg_pool"], found["random"], found["recency"])
    assert "| useful |" in capsys.readouterr().out


def test_foresight_finds_what_comes_next_and_needs_no_gains(tmp_path, monkeypatch):
    write_clips(tmp_path, 8)
    for measured in tmp_path.glob("*.gains.json"):
        measured.unlink()
    (tmp_path / "more").mkdir()
    for number in (6, 7):  # some lie elsewhere
        (tmp_path / f"latent_{number:06d}.pt").rename(tmp_path / "more" / f"latent_{number:06d}.pt")
    told = ["ae/configs/foresight.yaml", f"data_dir={tmp_path}", f"log_dir={tmp_path}", "frames=48", "val_split=0.25"]
    told.append(f"also=[{tmp_path / 'more'}]")
    use(monkeypatch, encoder_train, *told, "noise=0.1", "epochs=10", *SIZES, "batch_size=4")
    trained = tmp_path / "foresight" / "encoder.safetensors"
    rules = ["--data", tmp_path, "--ckpt", trained, "--out", tmp_path / "out", "--memory", 3, "--local", 12]
    use(monkeypatch, evaluation, *rules)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rules"]
    hit = {name: rule["metrics"]["hit"][0] for name, rule in report.items()}
    likest = max(found for name, found in hit.items() if name != "useful")
    assert hit["useful"] > likest + 0.1


def test_clips_shorter_than_foresight_looks_at_are_refused(tmp_path, monkeypatch):
    write_clips(tmp_path, 2)
    told = ["ae/configs/foresight.yaml", f"data_dir={tmp_path}", "also=[]", f"log_dir={tmp_path}", "frames=84", *SIZES]
    with pytest.raises(UserError, match="has 48 frames and frames is 84"):
        use(monkeypatch, encoder_train, *told)
    with pytest.raises(UserError, match="frames is 8; with past 3 it must be 9 or more"):
        use(monkeypatch, encoder_train, *told, "frames=8")


def test_the_gain_of_a_frame_is_what_the_error_loses_by_it(tmp_path, monkeypatch):
    told = make_family(tmp_path)
    told |= {"model_kwargs": latentmem(tmp_path), "num_output_frames": 18}
    config = write_config(tmp_path / "run.yaml", told)
    pipeline = load(config)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    shape = (18, *pipeline.format.shape(told["height"], told["width"]))
    files = []
    for number in range(2):
        name = f"latent_{number:06d}.pt"
        torch.save(torch.randn(shape, generator=torch.Generator().manual_seed(number)), corpus / name)
        files.append({"file": name, "prompt": "a red house"})
    (corpus / "manifest.json").write_text(json.dumps({"files": files}))
    use(monkeypatch, gains, config, "--data", corpus, "--every", 1, "--candidates", 2, "--batch", 2)
    blocks = json.loads((corpus / "latent_000000.gains.json").read_text())["blocks"]
    assert [block["start"] for block in blocks] == [12, 15]
    assert blocks[1]["frames"] == [1, 4] and len(set(blocks[1]["gains"])) == 2

    # the same by hand: the engine is given the clip, and a block's flow is predicted with one frame in memory
    clip = gains.clip_of(corpus / "latent_000000.pt", corpus / "latent_000000.pt")[None]
    noise = gains.SeededNoise(0, [(0, 0)])
    generation = pipeline.start_from(pipeline.prompt_embeds(["a red house"]), noise, gains.Nothing())
    for block in clip[:, :15].split(3, 1):
        generation.commit(block, generation.begin())
    block, levels = clip[:, 15:], (1000.0, 833.0)
    without = gains.denoising_error(generation, block, None, levels)
    for frame, gain in zip(blocks[1]["frames"], blocks[1]["gains"], strict=True):
        by_hand = float((without - gains.denoising_error(generation, block, frame, levels))[0])
        # float32 errors near 2, of other batch sizes
        assert gain == pytest.approx(by_hand, abs=1e-5)
    before = (corpus / "latent_000001.gains.json").stat().st_mtime_ns
    use(monkeypatch, gains, config, "--data", corpus)
    assert (corpus / "latent_000001.gains.json").stat().st_mtime_ns == before


class Wary:
    """Describes a frame by its first numbers; asks as it is told to."""

    past = 2

    def __init__(self, nothing: float) -> None:
        self.nothing = torch.tensor([nothing, (1 - nothing**2) ** 0.5])
        self.asked: list[int] = []

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[..., :2, 0, 0].float()

    def query(self, recent: torch.Tensor) -> torch.Tensor:
        self.asked.append(recent.shape[1])
        return torch.tensor([[1.0, 0.0]] * len(recent))


@pytest.mark.parametrize("nothing, count", [(-1.0, 2), (0.5, 1), (0.99, 0)])
def test_what_is_no_more_useful_than_nothing_is_not_retrieved(nothing, count):
    cosines = torch.tensor([0.0, 0.9, -0.8, 0.1])
    latents = torch.stack([cosines, (1 - cosines**2).sqrt()], 1)[None, :, :, None, None].repeat(2, 1, 1, 1, 1)
    wary = Wary(nothing)
    index = Retrieval(wary)
    index.add(latents)
    found = index.select(range(4), 2, [None, None])
    assert found.frames == ((1, 3)[:count],) * 2 and wary.asked == [2]


def test_a_generation_without_anything_worth_it_is_one_without_memory(tmp_path):
    told = make_family(tmp_path)
    pipeline = load(write_config(tmp_path / "run.yaml", told | {"model_kwargs": latentmem(tmp_path)}))
    without = load(
        write_config(tmp_path / "none.yaml", told | {"model_kwargs": latentmem(tmp_path, recent_exclude=24)})
    )
    pipeline.descriptor = Wary(1.0)
    sample = [Sample("a red house")]
    for ours, plain in zip(pipeline.blocks(sample), without.blocks(sample), strict=True):
        assert ours.latents.equal(plain.latents)


def test_an_encoder_of_another_kind_or_size_is_refused_in_one_line(tmp_path, monkeypatch):
    make_family(tmp_path)
    with pytest.raises(UserError, match=r"is no encoder of usefulness; train one with CONFIG=ae/configs/utility.yaml"):
        load_usefulness(tmp_path / "checkpoints" / "miniature_ae.pt", "cpu", (16, 8, 12))
    write_clips(tmp_path, 2)
    told = ["ae/configs/utility.yaml", f"data_dir={tmp_path}", f"log_dir={tmp_path}", "epochs=1", *SIZES]
    use(monkeypatch, encoder_train, *told)
    with pytest.raises(UserError, match="16 x 8 x 12 and these are 16 x 8 x 13"):
        load_usefulness(tmp_path / "utility" / "encoder.safetensors", "cpu", (16, 8, 13))
    (tmp_path / "latent_000001.gains.json").unlink()
    with pytest.raises(UserError, match=r"gains.json is missing; measure the gains with"):
        use(monkeypatch, encoder_train, *told, "tag=other")
