"""tinyworld's training: teacher forcing equals the cache, every stage runs, resumes and stays on its device."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

import generate_latent
from ae import train as encoder_train
from pipeline.config import load_config
from pipeline.frames import FrameShape
from pipeline.plain import PlainCache
from pipeline.policies import SlidingWindow
from tests.close import assert_close
from tests.miniature import ROUNDINGS
from tinyworld import films, report
from tinyworld import train as tinyworld_train
from tinyworld.train import CONFIG, train
from tinyworld.training import backbone, contexts, fewstep
from tinyworld.training.backbone import Backbone, contexts_of, forward
from tinyworld.training.bf16_linear import use_bf16_matmul
from tinyworld.training.corpus import Corpus
from tinyworld.training.muon import Muon, orthogonal
from tinyworld.training.settings import (
    BackboneSettings,
    FewStepSettings,
    TrainSettings,
)
from tinyworld.training.state import Checkpoint, generator
from tinyworld.training.teacher_forcing import BlockPlan
from tinyworld.training.vae import encode
from tinyworld.training.workers import made_ahead
from tinyworld.world.scene import TRAVEL
from utils.errors import UserError
from utils.settings import load_settings

LATENTMEM = dataclasses.replace(load_config("configs/tinyworld_latentmem.yaml").policy(), recent_exclude=0)
POLICIES = {
    "native": SlidingWindow(local_attn_size=LATENTMEM.local_attn_size, sink_size=LATENTMEM.sink_size),
    "latentmem": LATENTMEM,
}
TINY = BackboneSettings(
    dim=24, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=16, text_dim=16, text_layers=1, frames=36, warmup=1
)


@pytest.mark.parametrize("name", ["native", "latentmem"])
def test_teacher_forcing_computes_what_a_rollout_with_the_cache_computes(name):
    """Clean frames block by block through the cache, against one teacher-forced forward with a noisy copy."""
    torch.manual_seed(0)
    frames, size = 30, (4, 4, 6)
    film_maker = Backbone(TINY, size[0]).eval()
    torch.nn.init.normal_(film_maker.model.head.head.weight, std=0.1)
    clean, noisy = torch.randn(1, frames, *size), torch.randn(1, 1, frames, *size)
    sigma = torch.full((1, 1, frames, 1, 1, 1), 0.7)
    said = ["a meadow at night"]
    policy = POLICIES[name]
    laid_out = []
    for start in range(0, frames, 3):
        recalled = [list(policy.candidates(start))[-policy.memory_size :]]
        laid_out.append(policy.plan(start, recalled if name == "latentmem" and recalled[0] else ()))
    chosen = [BlockPlan(np.array([plan.attended()[:-3]], dtype=np.int64), plan.positions()) for plan in laid_out]
    with torch.inference_mode():
        flow = forward(film_maker, said, clean, noisy, sigma, contexts_of(film_maker, chosen, noisy))[:, 0]
        model, text = film_maker.model, film_maker.model.encode_text(film_maker.text(said))
        cache = PlainCache(FrameShape.of(model.params, *size[1:]))
        for plan in laid_out:
            own = slice(plan.start, plan.start + 3)
            cache.begin(plan)
            rolled = model(noisy[:, 0, own], torch.full((1, 1), 700.0), text, cache)
            assert_close(rolled, flow[:, own], ROUNDINGS)  # a model of the miniature's depth, keys in another order
            cache.commit(plan)
            model(clean[:, own], torch.zeros(1, 1), text, cache)


def test_the_training_contexts_are_those_of_the_policies():
    frames, camera = np.arange(36), np.zeros((1, 36))
    plain = dataclasses.replace(TINY, no_local=0.0, wide_local=0.0, most_memory=0)
    for name, made in {
        "native": contexts.native(frames, LATENTMEM, 1),
        "latentmem": contexts.latentmem(frames, camera, LATENTMEM, plain, np.random.default_rng(0)),
    }.items():
        for block, plan in enumerate(made):
            due = POLICIES[name].plan(3 * block)
            assert tuple(plan.context[0]) == due.attended()[:-3]
            assert plan.positions == due.positions()


@given(st.integers(0, 10**6))
@hypothesis_settings(max_examples=30)
def test_every_training_context_holds_only_the_past_and_no_frame_twice(seed):
    rng = np.random.default_rng(seed)
    settings = BackboneSettings()
    frames = contexts.draw_sequence(settings, LATENTMEM, rng)
    camera = rng.uniform(0, TRAVEL, (2, len(frames)))
    for made in (contexts.native(frames, LATENTMEM, 2), contexts.latentmem(frames, camera, LATENTMEM, settings, rng)):
        for block, plan in enumerate(made):
            assert plan.context.shape[1] + 3 == len(plan.positions) <= LATENTMEM.local_attn_size
            for context in plan.context:
                assert len(set(context)) == len(context)
                assert (context < 3 * block).all()


def test_muon_takes_the_steps_of_pytorchs_without_its_bfloat16():
    torch.manual_seed(0)
    start = [torch.randn(8, 24), torch.randn(8, 24), torch.randn(24, 8)]
    gradients = [[torch.randn_like(x) for x in start] for _ in range(3)]
    ends = []
    for kind in (Muon, torch.optim.Muon):
        weights = [torch.nn.Parameter(x.clone()) for x in start]
        optimizer = kind(weights, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        ends.append(torch.cat([weight.flatten() for weight in weights]).detach())
    first = torch.cat([x.flatten() for x in start])
    moved = (ends[1] - first).norm()
    assert (ends[0] - ends[1]).norm() < 0.02 * moved  # of five steps of products in bfloat16, 2^-9 each
    strength = torch.linalg.svdvals(orthogonal(torch.randn(3, 8, 24)))
    assert strength.min() > 0.5 and strength.max() < 1.3


def test_what_is_invented_comes_after_a_cut_and_what_was_before_stays_true():
    torch.manual_seed(0)
    settings = dataclasses.replace(TINY, context_noise=0.0)
    frames = np.arange(36)
    clean = torch.randn(1, 36, 4, 8, 12)
    plans = contexts.latentmem(frames, np.zeros((1, 36)), LATENTMEM, settings, np.random.default_rng(0))
    nothing = torch.zeros(1, 12, 3), torch.zeros(1, 36, 12), np.zeros((1, 36))
    batch = backbone.Batch(["a red house"], frames, clean, plans, *nothing)
    made = fewstep.invented_context(Backbone(settings, 4), settings, batch, clean, np.random.default_rng(0))
    same = (made == clean).flatten(2).all(2)[0]
    cut = int(same.sum())
    assert 9 <= cut < 36 and cut % 3 == 0
    assert same[:cut].all() and not same[cut:].any()


def small(folder: Path) -> list[str]:
    stages = "[{steps: 2, frames: 1, batch: 2}, {steps: 2, frames: 5, batch: 1}]"
    return [
        f"work={folder / 'work'}", f"export={folder / 'export'}", "threads=1", "world.scenes=2", "world.held_out=2",
        "world.shown=[1]", "vae.base_dim=4", "vae.check_clips=1", f"vae.stages={stages}", "latents.clips=2",
        "latents.starts=2", "backbone.dim=24", "backbone.ffn_dim=32", "backbone.num_layers=1", "backbone.num_heads=2",
        "backbone.text_dim=16", "backbone.steps=4", "backbone.batch=1", "backbone.start_batch=1", "backbone.copies=1",
        "backbone.warmup=1", "backbone.frames=24", "latents.frames=24", "latents.start_frames=3",
        "backbone.start_blocks=1", "fewstep.start_blocks=1", "fewstep.steps=2", "fewstep.copies=1",
        "fewstep.start_batch=1",
        "encoder.corpus=['inference_iter=2', 'batch_size=2', 'num_output_frames=12', 'denoising_step_list=[1000]', "
        "'max_video_saves=0', 'text_cache=null']",
        "encoder.training=['epochs=2', 'hidden_dims=[8]', 'latent_dim=8', 'batch_size=2', 'val_split=0.5']",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a whole training, once for all tests: they copy it before they change it."""
    folder = tmp_path_factory.mktemp("trained")
    train(load_settings(TrainSettings, CONFIG, small(folder)))
    return folder


@pytest.fixture
def copied(trained, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, in which trainings go on, without contact sheets and the retrieval encoder."""
    for name in ("draw_starts", "train_encoder"):
        monkeypatch.setattr(tinyworld_train, name, lambda *given: None)
    monkeypatch.setattr(films, "reconstruct", lambda codec, video: video)
    return shutil.copytree(trained, tmp_path / "copied")


def in_this_process(module: str, *arguments: str) -> None:
    """What `tinyworld.train.run_module` does, without another start of Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [module, *arguments])
        {"generate_latent": generate_latent, "ae.train": encoder_train}[module].main()


def test_every_stage_of_the_training_runs_and_a_second_run_repeats_nothing(trained, monkeypatch):
    weights = trained / "export/checkpoints/tinyworld.safetensors"
    first = weights.read_bytes()
    assert len((trained / "export/checkpoints/tinyworld_prompts.txt").read_text().splitlines()) == 2
    sheets = {f"{name}_sheet.png" for name in ("vae", "backbone", "fewstep")}
    assert sheets <= {path.name for path in (trained / "work").iterdir()}
    encoder = trained / "export/checkpoints/tinyworld_ae.safetensors"
    learned = load_file(encoder)
    monkeypatch.setattr(tinyworld_train, "run_module", in_this_process)
    monkeypatch.setattr(tinyworld_train, "draw_starts", lambda *given: None)
    monkeypatch.setattr(films, "reconstruct", lambda codec, video: video)  # sheets are drawn each time
    train(load_settings(TrainSettings, CONFIG, small(trained)))
    assert weights.read_bytes() == first
    assert all(tensor.equal(learned[name]) for name, tensor in load_file(encoder).items())


def test_a_training_goes_on_from_exported_weights_with_the_codec_as_it_is(copied, tmp_path):
    again = tmp_path / "again"
    more = [
        *small(again), f"continues={copied / 'export'}", "backbone.steps=0", "world.first=5", "fewstep.invented=1",
    ]  # fmt: skip
    train(load_settings(TrainSettings, CONFIG, more))
    codec = "export/wan_models/tinyworld/vae/diffusion_pytorch_model.safetensors"
    weights = "export/checkpoints/tinyworld.safetensors"
    assert (again / codec).read_bytes() == (copied / codec).read_bytes()
    first, then = load_file(copied / weights), load_file(again / weights)
    assert first.keys() == then.keys() and not all(then[name].equal(first[name]) for name in first)
    with pytest.raises(UserError, match="goes on from no weights"):
        load_settings(TrainSettings, CONFIG, ["backbone.steps=0"])


@pytest.mark.parametrize("wrong", ["latents.frames=45", "latents.start_frames=9"])
def test_clips_shorter_than_a_training_sequence_are_refused(wrong):
    with pytest.raises(UserError, match=r"the training sequences need at least (48|12)"):
        load_settings(TrainSettings, CONFIG, [wrong])


@pytest.mark.parametrize(
    "wrong",
    [
        "device=foo", "threads=0", "world.scenes=0", "world.shown=[64]", "vae.base_dim=-1", "latents.batch=0",
        "vae.stages=[{steps: 1, frames: 4}]", "vae.stages=[{steps: 1, lr: .nan}]", "backbone.kinds=[0.5,0.5]",
        "backbone.kinds=[0.5,0.5,0.5]", "backbone.dim=30", "backbone.text_dim=24", "backbone.frames=47",
        "backbone.max_start=18", "backbone.steps=0",
        "backbone.wrong_memory=1.5", "world.first=-1", "backbone.most_memory=7", "backbone.muon_lr=nan",
        "backbone.ema=1", "fewstep.own=2",
        "fewstep.guidance=inf", "backbone.decay=1e9", "backbone.lookup=1",
        "backbone.strange_memory=0.5", "generates=configs/none.yaml", "seed=-1",
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_in_one_line_before_anything_is_written(wrong, tmp_path, monkeypatch):
    key = wrong.partition("=")[0]
    due = [override for override in small(tmp_path) if not override.startswith(f"{key}=")]
    monkeypatch.setattr("sys.argv", ["train", *due, wrong])
    with pytest.raises(UserError) as error:
        tinyworld_train.main()
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("capability, fast", [("AVX2", False), ("AVX512", True)])
def test_bfloat16_is_used_where_it_is_fast(capability, fast, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("tinyworld.training.vae.encode_exactly", lambda *_: torch.is_autocast_enabled("cpu"))
    codec = SimpleNamespace(device=torch.device("cpu"))
    assert encode(codec, np.zeros((1, 1, 2, 2, 3), np.uint8)) is fast


def test_a_bfloat16_layer_has_the_weights_of_the_layer_that_it_replaces():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    x = torch.randn(5, 6)
    exact = model(x)
    weight = model[0].weight
    keys = list(model.state_dict())
    use_bf16_matmul(model)
    assert model[0].weight is weight and list(model.state_dict()) == keys
    # two products of at most 6 terms of size 1, whose factors have 8 bits: relative errors of 2^-8 each
    torch.testing.assert_close(model(x), exact, atol=2**-5, rtol=2**-6)
    assert not torch.equal(model(x), exact)
    model(x).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_states_of_other_settings_are_refused_and_a_longer_codec_refuses_the_latents_of_the_shorter(copied):
    def again(*overrides: str) -> None:
        train(load_settings(TrainSettings, CONFIG, [*small(copied), *overrides]))

    with pytest.raises(
        UserError, match=r"fewstep.pt was made with other fewstep.guidance; delete fewstep.pt in .*work"
    ):
        again("fewstep.guidance=0.3")
    with pytest.raises(
        UserError, match=r"backbone.pt was made with other backbone.dim; delete backbone.pt, fewstep.pt"
    ):
        again("backbone.dim=48")
    with pytest.raises(UserError, match=r"panoramas.npy holds 2 scenes and 3 are asked for"):
        again("world.scenes=3")
    with pytest.raises(UserError, match=r"long.pt was made with other codec; delete long.pt, short.pt, backbone.pt"):
        again("vae.stages=[{steps: 2, frames: 1, batch: 2}, {steps: 2, frames: 5, batch: 1}, {steps: 1, frames: 5}]")
    state = torch.load(copied / "work/vae.pt", weights_only=True)
    assert state["steps"] == 5
    del state["about"]
    torch.save(state, copied / "work/vae.pt")
    with pytest.raises(UserError, match="settings, which it does not tell; delete vae"):
        again()
    whole = (copied / "work/vae.pt").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no state"):
        (copied / "work/vae.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"vae.pt is damaged; delete vae.pt, long.pt"):
            again()


def test_the_report_judges_trained_weights_and_draws_the_sheet(trained, tmp_path, monkeypatch, capsys):
    export = trained / "export"
    folder = tmp_path / "report"
    told = [
        f"model_root={export / 'wan_models'}", f"generator_ckpt={export / 'checkpoints/tinyworld.safetensors'}",
        f"folder={folder}", "steps=[1000,500]", "clips=2", "short_frames=3", "long_clips=1", "long_frames=3",
        "recall_clips=2", "recall_first=3", "recall_frames=6",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["report", *told])
    report.main()
    printed = capsys.readouterr().out
    assert "| ground, first 3 s | 1.00 |" in printed and "| true place - none |" in printed
    assert (folder / "report.md").read_text() in printed
    assert (folder / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", [0, len(backbone.STEPS) - 1])  # without and with all that a step may hold
def test_a_step_stays_on_the_device_that_its_latents_are_on(kind):
    kinds = [float(kind == other) for other in range(len(backbone.STEPS))]
    settings = dataclasses.replace(TINY, kinds=kinds, num_layers=1)
    rng = np.random.default_rng(0)
    with FakeTensorMode(allow_non_fake_inputs=True):  # refuses operations across devices, and needs none
        with torch.device("meta"):
            model = Backbone(settings, 4)
        use_bf16_matmul(model.model.blocks)
        corpus = Corpus(
            torch.zeros(3, 48, 4, 8, 12), np.zeros((3, 48)), np.zeros((3, 48, 3), np.float32), ["a red house"] * 3
        )
        _, batch = backbone.draw_batch(settings, LATENTMEM, [corpus, corpus], rng)
        batch = batch.to(torch.device("meta"))
        context = fewstep.own_context(model, FewStepSettings(), settings, batch, rng)
        loss = backbone.teacher_forcing_loss(model, settings, batch, context, rng, guidance=0.5)
        loss.backward()
        assert {x.device.type for x in (loss, context, *(p.grad for p in model.parameters()))} == {"meta"}


def test_batches_are_the_same_whoever_draws_them():
    latents = torch.randn(3, 48, 4, 8, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    corpus = Corpus(latents, np.zeros((3, 48)), np.zeros((3, 48, 3), np.float32), ["a red house"] * 3)

    def draw(step: int) -> tuple[np.random.Generator, backbone.Batch]:
        rng = generator(0, step)
        return rng, backbone.draw_batch(TINY, LATENTMEM, [corpus, corpus], rng)[1]

    torch.manual_seed(0)
    here = list(made_ahead(draw, range(5), workers=0))
    beside = list(made_ahead(draw, range(5), workers=2))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after  # PyTorch's own numbers are left as they were
    for (rng, batch), (other_rng, other) in zip(here, beside, strict=True):
        assert rng.random() == other_rng.random()  # a step goes on with the same numbers
        assert torch.equal(batch.clean, other.clean) and batch.captions == other.captions
        for plan, other_plan in zip(batch.plans, other.plans, strict=True):
            assert np.array_equal(plan.context, other_plan.context) and plan.positions == other_plan.positions
    assert len({tuple(batch.frames) for _, batch in here}) > 1


def test_a_training_that_was_cut_off_ends_as_one_that_was_not(copied, monkeypatch):
    settings = load_settings(TrainSettings, CONFIG, small(copied))
    weights = copied / "export/checkpoints/tinyworld.safetensors"
    uninterrupted = weights.read_bytes()
    for leftover in (weights, copied / "work/backbone.pt", copied / "work/fewstep.pt"):
        leftover.unlink()

    steps = iter(range(3))
    loss = backbone.teacher_forcing_loss
    monkeypatch.setattr(Checkpoint.save, "__defaults__", (True,))  # at every step
    with monkeypatch.context() as cut, pytest.raises(StopIteration):
        cut.setattr(backbone, "teacher_forcing_loss", lambda *given: (next(steps), loss(*given))[1])
        train(settings)
    assert not weights.exists()
    train(settings)
    assert weights.read_bytes() == uninterrupted
