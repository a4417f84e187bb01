"""The video autoencoders of both kinds: as streams they give what encoding and decoding at once gives."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from tests.close import assert_close
from tests.miniature import randomised
from utils.errors import UserError
from utils.tensors import shapes_of
from wan.params import LatentFormat, latent_format
from wan.vae import StreamingDecoder, StreamingEncoder, encode, find_vae, load_vae, normalisation, read_vae
from wan.vae_names import PUBLISHED, to_diffusers

WIDTHS = {"base_dim": 4, "decoder_base_dim": 4}
KINDS = {
    "Wan2.1": {"dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
    "Wan2.2": PUBLISHED[48] | {"dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
}


@pytest.fixture(scope="module", params=KINDS)
def vae(request) -> AutoencoderKLWan:
    torch.manual_seed(0)
    made = randomised(AutoencoderKLWan(**KINDS[request.param], **WIDTHS)).eval()
    return made.requires_grad_(False)


def close(streamed: torch.Tensor, whole: torch.Tensor) -> None:
    """The same convolutions, whose sums batches of another shape may take in another order.

    Some 30 of them lie one after another, over 27 x 4 to 27 x 8 numbers, which is up to 27 roundings each. What a
    layer passes on may be several times as large as the end, which is cut to -1 and 1: twice, for four times as many.
    """
    assert whole.std() > 1e-3
    assert_close(streamed, whole, roundings=4 * 30 * 27)


@pytest.mark.parametrize("parts", [[3], [1, 1, 1], [2, 1]], ids=str)
def test_streamed_frames_are_those_of_decoding_at_once(vae, parts):
    form, (mean, std) = latent_format(vae.config), normalisation(vae)
    latents = torch.randn(2, 3, form.channels, 2, 3, generator=torch.Generator().manual_seed(1))
    whole = vae.decode(latents.transpose(1, 2) * std + mean).sample.transpose(1, 2)
    decoder = StreamingDecoder(vae)
    streamed = torch.cat([decoder(part) for part in latents.split(parts, dim=1)], dim=1)
    assert streamed.shape == (2, form.pixel_frames(3), 3, 2 * form.spatial, 3 * form.spatial)
    close(streamed, whole)


@pytest.mark.parametrize("parts", [[9], [1] * 9, [1, 4, 4], [3, 5, 1]], ids=str)
def test_streamed_latents_are_those_of_encoding_at_once(vae, parts):
    form, (mean, std) = latent_format(vae.config), normalisation(vae)
    video = torch.rand(2, 9, 3, 2 * form.spatial, form.spatial, generator=torch.Generator().manual_seed(2)) * 2 - 1
    whole = ((vae.encode(video.transpose(1, 2)).latent_dist.mode() - mean) / std).transpose(1, 2)
    encoder = StreamingEncoder(vae)
    streamed = torch.cat([encoder(part) for part in video.split(parts, dim=1)], dim=1)
    assert streamed.shape == (2, 3, *form.shape(*video.shape[-2:]))
    close(streamed, whole)
    assert torch.equal(encode(vae, video), StreamingEncoder(vae)(video))


def test_frames_that_fill_no_latent_frame_wait(vae):
    encoder, frames = StreamingEncoder(vae), torch.zeros(1, 6, 3, 32, 32)
    assert encoder(frames).shape[1] == 2  # one of the first frame, one of the next four
    assert encoder(frames[:, :2]).shape[1] == 0
    assert encoder(frames[:, :1]).shape[1] == 1


def as_wan_names_it(key: str, blocks: int) -> str:
    """A name of diffusers' residual VAE as Wan2.2_VAE.pth has it."""
    for ours, theirs in {
        "post_quant_conv.": "conv2.", "quant_conv.": "conv1.", ".conv_in.": ".conv1.", ".norm_out.": ".head.0.",
        ".conv_out.": ".head.2.", ".mid_block.resnets.0.": ".middle.0.", ".mid_block.attentions.0.": ".middle.1.",
        ".mid_block.resnets.1.": ".middle.2.",
    }.items():  # fmt: skip
        key = key.replace(ours, theirs)
    if "_blocks." in key or ".middle.0." in key or ".middle.2." in key:
        for ours, theirs in {
            ".norm1.": ".residual.0.", ".conv1.": ".residual.2.", ".norm2.": ".residual.3.", ".conv2.": ".residual.6.",
            ".conv_shortcut.": ".shortcut.",
        }.items():  # fmt: skip
            key = key.replace(ours, theirs)
    parts = key.split(".")
    if parts[1] in ("down_blocks", "up_blocks"):
        group = parts[1].replace("_blocks", "samples")
        last = {"downsampler": blocks, "upsampler": blocks + 1}
        inner = [str(last[parts[3]]), *parts[4:]] if parts[3] in last else parts[4:]
        key = ".".join([parts[0], group, parts[2], group, *inner])
    return key


def test_wan22s_original_file_loads_by_its_shapes(tmp_path):
    torch.manual_seed(0)
    vae = randomised(AutoencoderKLWan(**PUBLISHED[48] | {"base_dim": 4, "decoder_base_dim": 8}))
    original = {as_wan_names_it(key, 2): value for key, value in vae.state_dict().items()}
    assert "decoder.upsamples.0.upsamples.3.time_conv.weight" in original
    assert "encoder.downsamples.1.downsamples.2.resample.1.weight" in original
    torch.save(original, tmp_path / "Wan2.2_VAE.pth")
    loaded = load_vae(find_vae(tmp_path))
    assert latent_format(loaded.config) == LatentFormat(48, 16, 4)
    assert loaded.config.latents_mean == PUBLISHED[48]["latents_mean"] and loaded.config.is_residual
    assert all(torch.equal(value, vae.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_wan22s_published_shapes_are_those_of_its_configuration():
    with torch.device("meta"):
        shapes = shapes_of(AutoencoderKLWan(**PUBLISHED[48] | {"base_dim": 160, "decoder_base_dim": 256}))
    published = {
        "encoder.conv1.weight": (160, 12, 3, 3, 3),
        "conv2.bias": (48,),
        "decoder.conv1.weight": (1024, 48, 3, 3, 3),
        "decoder.middle.1.to_qkv.weight": (3072, 1024, 1, 1),
        "decoder.upsamples.0.upsamples.3.time_conv.weight": (2048, 1024, 3, 1, 1),
        "decoder.upsamples.1.upsamples.3.time_conv.weight": (2048, 1024, 3, 1, 1),
        "decoder.upsamples.2.upsamples.3.resample.1.weight": (512, 512, 3, 3),
        "decoder.head.2.weight": (12, 256, 3, 3, 3),
    }
    names = to_diffusers({key: torch.empty(shape, device="meta") for key, shape in published.items()})
    assert {key: tuple(tensor.shape) for key, tensor in names.items()}.items() <= shapes.items()
    assert len(PUBLISHED[48]["latents_mean"]) == len(PUBLISHED[48]["latents_std"]) == PUBLISHED[48]["z_dim"]


def test_a_file_of_neither_vae_is_refused(tmp_path):
    torch.save(AutoencoderKLWan(**KINDS["Wan2.1"], **WIDTHS, z_dim=8).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"latents of 8 channels.* 16 and 48 are known; use the model's vae/ folder"):
        read_vae(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "said",
    ["{", "[]", '{"z_dim": "x"}', '{"base_dim": -4}', '{"dim_mult": null}', '{"z_dim": 8}', '{"latents_std": 3}'],
)
def test_a_folder_with_a_broken_config_is_refused_in_one_line(said, tmp_path):
    folder: Path = tmp_path / "vae"
    AutoencoderKLWan(**KINDS["Wan2.1"], **WIDTHS).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["base_dim"] == 4
    (folder / "config.json").write_text(said)
    with pytest.raises(UserError, match=r"vae") as error:
        read_vae(folder)
    assert "\n" not in str(error.value)
