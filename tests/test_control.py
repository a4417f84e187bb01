"""Control while a video is made: what it starts from, where its prompt changes, going on, forks."""

import json
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import inference
from pipeline import film
from pipeline.backbones import METHODS
from pipeline.build import load
from pipeline.config import load_config
from pipeline.generation import Generation, LatentBlock
from pipeline.given import Stored
from pipeline.latents import LatentFile, open_latents
from pipeline.noise import RecordedNoise, SeededNoise
from pipeline.pipeline import Pipeline
from pipeline.plain import PlainCache
from pipeline.prompts import Prompt
from pipeline.samples import Sample
from pipeline.timeline import Grid, Segment, segments_of
from tests.close import assert_close
from tests.miniature import HEIGHT, ROUNDINGS, WIDTH, make_family
from tests.replay import DEFAULT_TOLERANCE, recorded_pipeline
from utils.errors import UserError
from wan.vae import StreamingDecoder, encode

GRID = Grid(frames=48, block=3, first=3, rate=4.0)
FRAMES = 24
GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("control")
    found = make_family(root) | {"num_output_frames": FRAMES, "inference_iter": 1, "segment_blocks": 3}
    kwargs = {"use_latentmem": True, "local_attn_size": 9, "sink_size": 1, "memory_size": 3, "recent_exclude": 0}
    return found | {"model_kwargs": kwargs, "keep_latents": True}


@pytest.fixture(scope="module")
def config(settings, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "control.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """A video that was made without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    call(config, f"output_folder={folder}")
    return folder


def call(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["main", *map(str, arguments)])
        inference.main()


def latents_in(folder: Path, name: str = "00000-0") -> torch.Tensor:
    return open_latents(folder / f"{name}.latents.npy").clone()


def record_in(folder: Path, name: str = "00000-0") -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def fork_in(folder: Path) -> str:
    """The name of the one fork in a folder."""
    return next(path.stem for path in folder.glob("00000-0_*.mp4"))


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("a red house", [(0, "a red house", None)]),
        ("a | b", [(0, "a | b", None)]),  # no lengths: a prompt like any other
        ("a[3s] | b[3s#] | c", [(0, "a", None), (12, "b", "text"), (24, "c", "cut")]),
        ("a[4f] | b", [(0, "a", None), (6, "b", "text")]),  # the first block that begins at or after it
        ("a[2b#] | b[1b]", [(0, "a", None), (6, "b", "cut")]),
    ],
)
def test_a_prompt_by_time_has_segments_that_begin_with_blocks(text, segments):
    assert segments_of(Prompt(0, text), GRID, "text") == [Segment(*segment) for segment in segments]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a[5q] | b[1s]", "no time"),
        ("a | b[5s] | c", "part 1 of the prompt, 'a', says no length"),
        ("[5s] | b", "part 1 of the prompt is empty"),
        ("a[12s] | b", "would begin at latent frame 48"),
        ("a[0.1s] | b[0.1s] | c", "begin at one block"),
        ("a[0s] | b", "begin at one block"),
    ],
)
def test_an_impossible_course_of_prompts_is_one_line(text, words):
    with pytest.raises(UserError, match=words.replace("[", r"\[")) as error:
        segments_of(Prompt(0, text), GRID, "text")
    assert "\n" not in str(error.value)


def test_a_list_of_prompts_and_a_setting_make_the_same_course():
    listed = Prompt(0, "a | b", {"prompts": ["a", "b"], "switch_frame_indices": [10]})
    course = [Segment(0, "a"), Segment(12, "b", "flush")]
    assert segments_of(listed, GRID, "flush") == course
    assert segments_of(Prompt(0, "x", {"prompts_list": ["a", "b"]}), GRID, "flush", indices="10, 40") == course
    given = [{"prompt": "a", "seconds": 3}, {"prompt": "b", "how": "flush"}]
    assert segments_of(Prompt(0, "x"), GRID, "text", given) == course
    for wrong in ([{"prompt": "a"}, {"prompt": "b"}], [{"text": "a"}], [{"prompt": "a", "hours": 1}]):
        with pytest.raises(UserError, match="segments: entry 1"):
            segments_of(Prompt(0, "x"), GRID, "text", wrong)


def test_a_prompt_changes_where_it_is_said(settings):
    pipeline = load(load_config(overrides=settings))
    scenes = (Segment(0, "a red house"), Segment(9, "a blue tree", "recache"))
    changed = [block.latents for block in pipeline.blocks(Sample("x", scenes=scenes))]
    plain = [block.latents for block in pipeline.blocks(Sample("a red house"))]
    assert all(torch.equal(a, b) for a, b in zip(changed[:3], plain[:3], strict=True))
    generation = pipeline.start(Sample("a red house"))
    for _ in range(3):
        generation.step()
    generation.switch(pipeline.prompt_embeds(["a blue tree"]), "recache")
    for block in changed[3:]:
        assert torch.equal(generation.step().latents, block)


def test_latents_in_the_making_can_be_read(tmp_path):
    x = torch.randn(9, 2, 3, 4)
    file = LatentFile(tmp_path / "x.npy", (9, 2, 3, 4))
    assert len(open_latents(file.path)) == 0
    file.write(0, x[:3])
    with open(file.path, "ab") as torn:
        torn.write(bytes(10))  # of a block that a kill cut short
    assert torch.equal(open_latents(file.path), x[:3])
    file.write(3, x[3:])
    assert (np.load(file.path) == x.numpy()).all()


@pytest.mark.parametrize("blocks", [1, 7])
def test_a_run_that_died_goes_on_inside_the_video(config, whole, tmp_path, blocks, monkeypatch):
    """Latents, frames and what is said of every block are those of a run without interruption."""

    class Dies(film.Film):
        def take(self, block, ready):
            if block.plan.start == 3 * blocks and not self.known:
                raise KeyboardInterrupt
            super().take(block, ready)

    monkeypatch.setattr("pipeline.sinks.Film", Dies)
    with pytest.raises(KeyboardInterrupt):
        call(config, f"output_folder={tmp_path}")
    assert not list(tmp_path.glob("[!.]*"))
    call(config, f"output_folder={tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert torch.equal(latents_in(tmp_path), latents_in(whole))
    assert record_in(tmp_path)["blocks"] == record_in(whole)["blocks"]
    assert (tmp_path / "00000-0.mp4").read_bytes() == (whole / "00000-0.mp4").read_bytes()


@pytest.mark.parametrize("last", ["publish", "Unfinished.discard"])
def test_a_run_killed_at_its_very_end_is_finished_by_the_next_one(config, whole, tmp_path, last, monkeypatch):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"pipeline.sinks.{last}", die)
        call(config, f"output_folder={tmp_path}")
    assert (tmp_path / "00000-0.mp4").exists() == (last == "Unfinished.discard")
    call(config, f"output_folder={tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert record_in(tmp_path)["blocks"] == record_in(whole)["blocks"]
    assert (tmp_path / "00000-0.mp4").read_bytes() == (whole / "00000-0.mp4").read_bytes()


def test_segments_are_joined_without_a_seam(whole, config, tmp_path):
    call(config, f"output_folder={tmp_path}", "segment_blocks=100")
    one, three = iio.imread(tmp_path / "00000-0.mp4"), iio.imread(whole / "00000-0.mp4")
    assert one.shape == three.shape == (1 + 4 * (FRAMES - 1), HEIGHT, WIDTH, 3)
    digests = [[block["digests"] for block in record_in(folder)["blocks"]] for folder in (tmp_path, whole)]
    assert digests[0] == digests[1]


def test_work_of_other_settings_is_not_taken_for_this_runs(config, tmp_path, monkeypatch):
    class Dies(film.Film):
        def take(self, block, ready):
            if block.plan.start == 15:
                raise KeyboardInterrupt
            super().take(block, ready)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.sinks.Film", Dies)
        call(config, f"output_folder={tmp_path}")
    left = sorted(path.name for path in (tmp_path / ".00000-0.mp4").iterdir())
    with pytest.raises(UserError, match="was made with seed 0, and this run has 7"):
        call(config, f"output_folder={tmp_path}", "seed=7")
    assert sorted(path.name for path in (tmp_path / ".00000-0.mp4").iterdir()) == left
    call(config, f"output_folder={tmp_path}", "seed=7", "skip_existing=false")
    assert record_in(tmp_path)["seed"] == 7


def test_a_fork_with_nothing_changed_is_its_parent(config, whole, tmp_path):
    call(config, f"from={whole / '00000-0'}", "at=3s", f"output_folder={tmp_path}")
    name = fork_in(tmp_path)
    assert torch.equal(latents_in(tmp_path, name), latents_in(whole))
    digests = [block["digests"] for block in record_in(tmp_path, name)["blocks"]]
    assert digests == [block["digests"] for block in record_in(whole)["blocks"]]


@pytest.mark.parametrize("method", ["native", "latentmem"])
def test_a_fork_at_every_block_is_its_parent(settings, method, tmp_path):
    """Whether the generation that made the block is copied, or the block is given to another one."""
    pipeline = load(load_config(overrides=method_of(settings, method) | {"num_output_frames": FRAMES}))
    generation = pipeline.start(Sample("a red house"))
    copies = []
    blocks = []
    while generation.start < FRAMES:
        blocks.append(generation.step().latents)
        copies.append(generation.fork())
    parent = torch.cat(blocks, dim=1)
    LatentFile(tmp_path / "x.npy", tuple(parent[0].shape)).write(0, parent[0])
    for copy in copies[:-1]:
        start = copy.start
        tail = [copy.step().latents for _ in range(start, FRAMES, 3)]
        assert torch.equal(torch.cat(tail, dim=1), parent[:, start:])
        given = Sample("a red house", given=(Stored(tmp_path / "x.npy", range(start), seed=0),))
        assert torch.equal(torch.cat([block.latents for block in pipeline.blocks(given)], dim=1), parent)


@pytest.mark.parametrize("name", ["rollout_native", "rollout_latentmem_avg"])
def test_a_recorded_first_block_goes_on_as_recorded(name):
    record = json.loads((GOLDENS / f"{name}.json").read_text())
    recorded = load_file(GOLDENS / f"{name}.safetensors")
    pipeline = recorded_pipeline(record, GOLDENS, recorded["noise"].shape)
    draws = len(pipeline.sampler.timesteps) - 1  # of a block, after what it starts from
    noise = RecordedNoise(recorded["noise"], recorded["renoise"][draws:])
    generation = pipeline.start_from(recorded["prompt_embeds"], noise)
    generation.give(recorded["latents"][:, :3])
    while generation.start < recorded["latents"].shape[1]:
        start = generation.start
        expected = recorded["latents"][:, start : start + 3]
        assert (generation.step().latents - expected).abs().max() <= DEFAULT_TOLERANCE


def test_a_fork_begins_at_once_where_its_parents_state_was_kept(config, tmp_path, monkeypatch):
    call(config, f"output_folder={tmp_path}", "keep_state=9f,15f", "num_output_frames=18")
    states = [tmp_path / f"00000-0.{frame}.state.safetensors" for frame in (9, 15)]
    assert all(path.exists() for path in states)
    committed = []
    give = Generation.give

    def counted(self: Generation, latents: torch.Tensor) -> LatentBlock:
        committed.append(self.start)
        return give(self, latents)

    monkeypatch.setattr(Generation, "give", counted)
    call(config, f"from={tmp_path / '00000-0'}", "at=12f", f"output_folder={tmp_path / 'fork'}")
    assert committed == [9]
    assert torch.equal(latents_in(tmp_path / "fork", fork_in(tmp_path / "fork")), latents_in(tmp_path))
    assert record_in(tmp_path / "fork", fork_in(tmp_path / "fork"))["blocks"] == record_in(tmp_path)["blocks"]
    committed.clear()
    other = ["model_kwargs.memory_size=2", f"output_folder={tmp_path / 'other'}"]
    call(config, f"from={tmp_path / '00000-0'}", "at=15f", *other)
    assert committed == [0, 3, 6, 9, 12]  # another context leaves other keys and values
    fork = [config, f"from={tmp_path / '00000-0'}", "at=15f", f"output_folder={tmp_path / 'damaged'}"]
    whole_state = states[1].read_bytes()
    for spoilt in (whole_state[:-9], whole_state[:-1] + bytes([whole_state[-1] ^ 1]), b""):
        states[1].write_bytes(spoilt)
        with pytest.raises(UserError, match=r"kept state .* is damaged.*; delete it") as error:
            call(*fork)
        assert "\n" not in str(error.value)
    states[0].replace(states[1])
    with pytest.raises(UserError, match="is of another generation: its latents is"):
        call(*fork)


def without_latents(whole: Path, folder: Path) -> Path:
    """A copy of a finished video whose latents were not kept."""
    shutil.copytree(whole, folder)
    (folder / "00000-0.latents.npy").unlink()
    return folder / "00000-0"


def test_a_fork_makes_its_parents_latents_again_where_they_were_not_kept(config, whole, tmp_path, capsys):
    parent = without_latents(whole, tmp_path / "parent")
    with pytest.raises(UserError, match="not before the end"):  # nothing is made in vain
        call(config, f"from={parent}", "at=60s")
    call(config, f"from={parent}", "at=9f", "seed=7", "keep_latents=false")
    names = {path.name for path in parent.parent.iterdir()}
    name = fork_in(parent.parent)
    forks = {f"{name}.{end}" for end in ("mp4", "json", "memory.png")}
    assert names == {path.name for path in whole.iterdir()} | forks
    assert (parent.parent / "00000-0.latents.npy").read_bytes() == (whole / "00000-0.latents.npy").read_bytes()
    assert "made again" in (said := capsys.readouterr().out) and "last bit" not in said


def test_a_fork_does_not_wait_for_another_run_that_remakes_its_parent(config, whole, tmp_path, monkeypatch):
    parent = without_latents(whole, tmp_path / "parent")
    monkeypatch.setattr("utils.claim.Claim.take", lambda claim, name: False)
    with pytest.raises(UserError, match="another run is making"):
        call(config, f"from={parent}", "at=9f", f"output_folder={tmp_path / 'fork'}")


def test_a_killed_remaking_goes_on_and_says_what_differs(config, whole, tmp_path, capsys):
    parent = without_latents(whole, tmp_path / "parent")
    shape = (FRAMES, *latents_in(whole).shape[1:])
    LatentFile(parent.with_name(".00000-0.latents.npy"), shape).write(0, latents_in(whole)[:6])
    record = record_in(parent.parent)
    record["blocks"][3]["digests"]["latents"] = "other"
    parent.with_suffix(".json").write_text(json.dumps(record))
    call(config, f"from={parent}", "at=9f", f"output_folder={tmp_path / 'fork'}")
    assert torch.equal(latents_in(parent.parent), latents_in(whole))
    assert "from latent frame 9 on they are not" in capsys.readouterr().out


def test_a_fork_keeps_what_is_before_and_changes_what_is_after(config, whole, tmp_path):
    parent = latents_in(whole)
    call(config, f"from={whole / '00000-0'}.mp4", "at=9f", "prompt=a blue tree", f"output_folder={tmp_path}")
    fork = latents_in(tmp_path, fork_in(tmp_path))
    assert torch.equal(fork[:9], parent[:9]) and not torch.isclose(fork[9:], parent[9:]).all(dim=(1, 2, 3)).any()
    scenes = record_in(tmp_path, fork_in(tmp_path))["scenes"]
    assert [(scene["start"], scene["prompt"]) for scene in scenes] == [(0, "a red house"), (9, "a blue tree")]


def test_a_span_is_made_again_and_what_follows_stays(config, whole, tmp_path):
    parent = latents_in(whole)
    arguments = [config, f"from={whole / '00000-0'}", "redo=2b-4b", "seed=7", f"output_folder={tmp_path}"]
    call(*arguments, "keep_after=true")
    again = latents_in(tmp_path, fork_in(tmp_path))
    assert torch.equal(again[:6], parent[:6]) and torch.equal(again[12:], parent[12:])
    assert not torch.isclose(again[6:12], parent[6:12]).all(dim=(1, 2, 3)).any()
    spans = [given["frames"] for given in record_in(tmp_path, fork_in(tmp_path))["given"]]
    assert spans == [[0, 6], [12, FRAMES]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["from=PARENT"], "needs at=TIME or redo"),
        (["from=PARENT", "at=60s"], "not before the end"),
        (["from=PARENT", "at=noon"], "no time"),
        (["from=PARENT", "redo=3s-2s"], "holds no block"),
        (["from=PARENT", "redo=3s"], "is no span"),
        (["from=PARENT", "redo=3s-60s"], "ends after the video"),
        (["from=PARENT", "at=1s", "height=64"], "they must be the same"),
        (["from=PARENT", "at=1s", "num_output_frames=96", "at=20s"], "24 latent frames; 81 are to be taken"),
        (["from=none/00000-0", "at=1s"], "does not exist"),
        (["at=1s"], "name its parent"),
        (["keep_state=60s"], "keep_state 60s is not before the end"),
        (["keep_state=2s,noon"], "keep_state 'noon' is no time"),
        (["keep_state=2s", "batch_size=2"], "batch_size is 2"),
        (["from=PARENT", "at=1s", "start=x.png"], "give one of them"),
        (["start=none.png"], "does not exist"),
        (["start=TEXT"], "no picture or video that can be read"),
        (["start=TINY"], "at least 16"),
        (["start=CUT"], "cannot be read"),
        (["start=LONG", "num_output_frames=3"], "raise num_output_frames"),
        (["start=SHAPE"], "has latents of 3 x 4 x 6"),
        (["start=PICTURE", "start_frames=1"], "less than the 3 latent frames"),
        (["start=PICTURE", "fit=squeeze"], "not one of cover"),
        (["prompt=a[1s] | b[900s] | c"], "would begin at"),
        (["switch=jump", "prompt=a[1s] | b"], "not one of text"),
    ],
)
def test_bad_control_is_one_line_before_the_work(config, whole, pictures, tmp_path, arguments, words):
    named = {"PARENT": whole / "00000-0"} | pictures
    filled = []
    for argument in arguments:
        for key, path in named.items():
            argument = argument.replace(f"={key}", f"={path}")
        filled.append(argument)
    with pytest.raises(UserError, match=words) as error:
        call(config, f"output_folder={tmp_path / 'new'}", *filled)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_fork_under_other_weights_is_refused(config, settings, whole, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copy(settings["generator_ckpt"], other)
    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    with pytest.raises(UserError, match=r"was made with generator_ckpt .*: other weights"):
        call(config, f"from={whole / '00000-0'}", "at=1s", f"generator_ckpt={other}", f"output_folder={tmp_path}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    found = {name: folder / f"{name}.png" for name in ("PICTURE", "TINY", "CUT")}
    noise.save(found["PICTURE"])
    noise.resize((8, 8)).save(found["TINY"])
    found["CUT"].write_bytes(found["PICTURE"].read_bytes()[:200])
    found |= {"TEXT": folder / "text.mp4", "LONG": folder / "long.mp4", "SHAPE": folder / "shape.pt"}
    found["TEXT"].write_text("no video")
    clip = np.linspace(0, 255, 33, dtype=np.uint8)[:, None, None, None] * np.ones((1, HEIGHT, WIDTH, 3), np.uint8)
    iio.imwrite(found["LONG"], clip.astype(np.uint8), fps=16, macro_block_size=1)
    torch.save(torch.zeros(6, 3, 4, 6), found["SHAPE"])
    return found


def test_a_video_begins_with_a_picture(config, settings, pictures, tmp_path, capsys):
    call(config, f"start={pictures['PICTURE']}", f"output_folder={tmp_path}")
    assert "the first 3 latent frames are PICTURE.png, held still for 9 frames" in capsys.readouterr().out
    pixels = torch.from_numpy(np.array(Image.open(pictures["PICTURE"]))).permute(2, 0, 1) / 127.5 - 1
    vae = load(load_config(overrides=settings)).vae
    expected = encode(vae, pixels.expand(1, 9, 3, HEIGHT, WIDTH))[0]
    found = latents_in(tmp_path)
    assert torch.equal(found[:3], expected)
    assert len(found) == FRAMES and record_in(tmp_path)["given"][0]["frames"] == [0, 3]


def test_a_video_goes_on_from_a_clip_and_from_latents(config, settings, pictures, tmp_path):
    clip, again = tmp_path / "clip", tmp_path / "again"
    call(config, f"start={pictures['LONG']}", f"output_folder={clip}")
    found = latents_in(clip)
    frames = torch.from_numpy(iio.imread(pictures["LONG"])).permute(0, 3, 1, 2)[None] / 127.5 - 1
    expected = encode(load(load_config(overrides=settings)).vae, frames)[0]
    assert len(expected) == 9 and torch.equal(found[:9], expected)
    torch.save(expected.clone(), tmp_path / "start.pt")
    call(config, f"start={tmp_path / 'start.pt'}", "start_frames=9", f"output_folder={again}")
    assert torch.equal(latents_in(again), found)


def test_each_line_of_a_prompt_file_may_have_a_start_and_a_course(config, pictures, tmp_path):
    lines = [
        {"prompt": "a red house", "start": str(pictures["PICTURE"])},
        {"prompts": ["a red house", "a blue tree"], "switch_frame_indices": [10]},
        {"prompt": "a tree"},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    call(
        config, f"data_path={tmp_path / 'prompts.jsonl'}", "inference_iter=-1", "batch_size=4",
        f"output_folder={tmp_path / 'videos'}",
    )  # fmt: skip
    first, second, third = (record_in(tmp_path / "videos", f"0000{n}-0") for n in range(3))
    assert first["given"][0]["file"] == str(pictures["PICTURE"])
    assert second["scenes"][1] == {"start": 12, "prompt": "a blue tree", "how": "text"}
    assert "given" not in third and "scenes" not in third


@pytest.mark.parametrize("vae", ["full"])
def test_a_decoder_goes_on_from_what_it_kept(settings, vae):
    pipeline = load(load_config(overrides=settings))
    x = torch.randn(2, 6, 16, HEIGHT // 8, WIDTH // 8)
    whole = StreamingDecoder(pipeline.vae)
    whole(x[:, :3])
    states = [whole.state(sample) for sample in range(2)]
    expected = whole(x[:, 3:])
    other = StreamingDecoder(pipeline.vae)
    other.restore(states)
    assert torch.equal(other(x[:, 3:]), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_fork_goes_on_as_its_parent_would_and_leaves_it_alone(settings, method, tmp_path, monkeypatch):
    """So does a generation whose state was kept."""
    pipeline = load(load_config(overrides=method_of(settings, method)))
    plain = torch.cat([block.latents for block in pipeline.blocks(Sample("a red house"))], dim=1)
    generation = pipeline.start(Sample("a red house"))
    while generation.start < 24:
        generation.step()
    generation.save(tmp_path / "saved.pt", keep_state=True)
    monkeypatch.setattr(Generation, "give", None)  # no block is committed again
    back = pipeline.restore(tmp_path / "saved.pt")
    other = generation.fork()
    other.switch("a blue tree", "flush")
    changed = [other.step().latents for _ in range(2)]
    twin = generation.fork()
    tails = []
    for one in (generation, twin, back):
        tails.append(torch.cat([one.step().latents for _ in range(2)], dim=1))
    assert all(torch.equal(tail, plain[:, 24:]) for tail in tails)
    assert not torch.equal(torch.cat(changed, dim=1), plain[:, 24:])


def method_of(settings: dict, method: str) -> dict:
    """Settings of a method, at its own sizes, that make ten blocks."""
    words = dict(change.removeprefix("model_kwargs.").split("=") for change in METHODS[method].settings)
    kwargs = {key: yaml.safe_load(value) for key, value in words.items()}
    kwargs |= {"use_latentmem": METHODS[method].config == "latentmem"}
    if kwargs["use_latentmem"]:
        kwargs |= settings["model_kwargs"] | kwargs
    return settings | {"model_kwargs": kwargs, "num_output_frames": 30}


@pytest.mark.parametrize("bank", [{}, {"host_gb": 0.00002, "disk_gb": 0.01, "capacity": 5}])
def test_a_saved_generation_comes_back(settings, bank, tmp_path):
    pipeline = load(load_config(overrides=settings | {"bank": bank}))
    generation = pipeline.start(Sample("a red house", index=4))
    for _ in range(4):
        generation.step()
    generation.switch(pipeline.prompt_embeds(["a blue tree"]), "recache")
    generation.step()
    generation.switch("a red house", "recache")  # which no block has seen yet
    generation.save(tmp_path / "saved.pt")
    expected = generation.fork().step().latents
    assert torch.equal(pipeline.restore(tmp_path / "saved.pt").step().latents, expected)
    generation.save(tmp_path / "kept.pt", keep_state=True)
    back = pipeline.restore(tmp_path / "kept.pt")
    assert torch.equal(back.step().latents, expected)
    assert [how for _, _, how in back.kept.prompts] == ["", "recache", "recache"]
    (tmp_path / "saved.pt").write_bytes((tmp_path / "saved.pt").read_bytes()[:-400])
    with pytest.raises(UserError):
        pipeline.restore(tmp_path / "saved.pt")
    torch.save({"latents": []}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no saved generation"):
        pipeline.restore(tmp_path / "other.pt")


@pytest.mark.parametrize("latentmem", [False, True])
def test_a_first_block_of_one_frame(settings, latentmem, config, pictures, tmp_path, capsys, monkeypatch):
    kwargs = settings["model_kwargs"] | {"use_latentmem": latentmem}
    uneven = settings | {"model_kwargs": kwargs, "independent_first_frame": True, "num_output_frames": FRAMES + 1}
    pipeline = load(load_config(overrides=uneven))
    blocks = list(pipeline.blocks(Sample("a red house")))
    assert [block.plan.start for block in blocks] == [0, *range(1, FRAMES + 1, 3)]
    assert [block.latents.shape[1] for block in blocks] == [1] + [3] * 8
    fast = torch.cat([block.latents for block in blocks], dim=1)

    def plain_cache(pipeline: Pipeline, batch: int, index: object) -> PlainCache:
        return PlainCache(pipeline.frame_shape(batch))

    monkeypatch.setattr(Pipeline, "build_cache", plain_cache)
    plain = torch.cat([block.latents for block in pipeline.blocks(Sample("a red house"))], dim=1)
    assert_close(fast, plain, ROUNDINGS)
    monkeypatch.undo()
    if latentmem:
        one_and_blocks = ["independent_first_frame=true", f"num_output_frames={FRAMES + 1}"]
        call(config, f"start={pictures['PICTURE']}", f"output_folder={tmp_path}", *one_and_blocks)
        assert "the first 1 latent frames are PICTURE.png" in capsys.readouterr().out
        assert record_in(tmp_path)["given"][0]["frames"] == [0, 1]


def test_memory_may_be_kept_to_its_scene(settings):
    retrieved = {}
    for across in (True, False):
        kwargs = settings["model_kwargs"] | {"memory_across_scenes": across}
        pipeline = load(load_config(overrides=settings | {"model_kwargs": kwargs, "num_output_frames": 48}))
        scenes = (Segment(0, "a red house"), Segment(24, "a blue tree", "text"))
        found = {}
        for block in pipeline.blocks(Sample("x", scenes=scenes)):
            found[block.plan.start] = set(block.plan.frames("retrieved"))
        retrieved[across] = found
    assert all(retrieved[True][start] == retrieved[False][start] for start in range(0, 24, 3))
    assert any(frame < 24 for start in range(24, 48, 3) for frame in retrieved[True][start])
    late = set().union(*(retrieved[False][start] for start in range(24, 48, 3)))
    assert late and min(late) >= 24


def test_a_fork_may_have_noise_of_its_own(settings):
    pipeline = load(load_config(overrides=settings))
    generation = pipeline.start(Sample("a red house"))
    for _ in range(6):
        generation.step()
    other = generation.fork(SeededNoise(7, [(0, 0)]))
    same = generation.fork(SeededNoise(0, [(0, 0)]))
    expected = generation.step().latents
    assert torch.equal(same.step().latents, expected)
    assert not torch.isclose(other.step().latents, expected).any()
