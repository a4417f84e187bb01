"""Other kinds of Wan run as users run them: another latent format, and a generator of one frame at a time."""

import json
import sys
from dataclasses import replace

import imageio.v3 as iio
import pytest
import torch

import generate_latent
import inference
from pipeline.config import load_config
from pipeline.preflight import preflight
from tests.miniature import PARAMS, WAN_2_1, Family, latentmem, make_family, write_config
from utils.errors import UserError
from wan.params import LatentFormat, WanParams
from wan.vae_names import PUBLISHED

FORMAT = LatentFormat(channels=48, spatial=16, temporal=4)
# Of Wan2.2-TI2V-5B's kind: a residual VAE on patches of 2 x 2 pixels, so 4 x 6 latents of 64 x 96 pixels.
WAN_2_2 = Family(
    params=WanParams(**PARAMS.to_dict() | {"in_dim": 48, "out_dim": 48}),
    vae=PUBLISHED[48] | {"base_dim": 4, "decoder_base_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
    height=64,
    width=96,
    model_type="ti2v",
)
FRAMES = 15  # latent frames: five blocks, of which the last ones retrieve


@pytest.fixture(scope="module")
def settings(root) -> dict:
    made = make_family(root, family=WAN_2_2)
    return made | {"num_output_frames": FRAMES, "model_kwargs": latentmem(root, "ae", recent_exclude=0)}


@pytest.fixture(scope="module")
def config(root, settings):
    return write_config(root / "wan_2_2.yaml", settings)


def call(main, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments), "inference_iter=1"])
    main()


def test_a_family_of_another_latent_format_makes_a_video(config, tmp_path, monkeypatch):
    call(inference.main, monkeypatch, config, f"output_folder={tmp_path}")
    video, record = iio.imread(tmp_path / "00000-0.mp4"), json.loads((tmp_path / "00000-0.json").read_text())
    assert video.shape == (FORMAT.pixel_frames(FRAMES), WAN_2_2.height, WAN_2_2.width, 3)
    assert record["frames"] == len(video) and video.std() > 5
    assert record["blocks"][-1]["retrieved"]


def test_a_family_of_another_latent_format_makes_a_corpus(config, tmp_path, monkeypatch):
    call(generate_latent.main, monkeypatch, config, f"output_folder={tmp_path}", "max_video_saves=1")
    latents = torch.load(tmp_path / "latent_000000.pt", weights_only=True)
    assert latents.shape == (FRAMES, *FORMAT.shape(WAN_2_2.height, WAN_2_2.width)) and latents.float().std() > 0.1
    video = iio.imread(tmp_path / "videos" / "latent_000000.mp4")
    assert video.shape == (FORMAT.pixel_frames(FRAMES), WAN_2_2.height, WAN_2_2.width, 3)


def test_the_plan_of_memory_is_made_of_the_familys_own_sizes(settings):
    found = preflight(load_config(overrides=settings))
    assert found.format == FORMAT
    assert found.params == WAN_2_2.params
    parts = {part.name.split(" of ")[0]: part for part in found.footprint.phases[1].parts}
    frame = 2 * PARAMS.num_layers * (2 * 3) * PARAMS.dim * 4  # key and value, layers, tokens, dim, bytes
    assert parts["keys and values"].host == (FRAMES - 6 - 1) * frame  # all but the ring of 6 frames and the sink


@pytest.mark.parametrize("override", ["height=48", "height=80", "width=112"])
def test_a_size_that_the_familys_format_does_not_take_is_refused(config, override, tmp_path, monkeypatch):
    name, size = override.split("=")
    with pytest.raises(UserError, match=f"{name} {size} is no multiple of 32, which this model takes"):
        call(inference.main, monkeypatch, config, f"output_folder={tmp_path / 'videos'}", override)
    assert not list(tmp_path.glob("videos/*"))


def test_a_transformer_and_an_autoencoder_of_two_formats_are_refused(tmp_path):
    mixed = make_family(tmp_path, family=replace(WAN_2_2, vae=WAN_2_1.vae))
    with pytest.raises(UserError, match=r"VAE .* makes latents of 16 channels where generator_ckpt .* takes 48"):
        preflight(load_config(overrides=mixed))


def test_a_generator_of_one_frame_at_a_time_makes_a_video(tmp_path, monkeypatch):
    family = make_family(tmp_path) | {"num_frame_per_block": 1, "num_output_frames": 12}
    kwargs = latentmem(tmp_path, local_attn_size=5, memory_size=2, recent_exclude=0)
    config = write_config(tmp_path / "frame_wise.yaml", family | {"model_kwargs": kwargs})
    call(inference.main, monkeypatch, config)
    video = iio.imread(tmp_path / "videos" / "00000-0.mp4")
    record = json.loads((tmp_path / "videos" / "00000-0.json").read_text())
    assert len(video) == record["frames"] == LatentFormat().pixel_frames(12)
    assert [block["start"] for block in record["blocks"]] == list(range(12))
    assert len(record["blocks"][-1]["retrieved"]) == 2
