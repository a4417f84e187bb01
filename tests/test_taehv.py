"""The tiny decoder: as a stream it gives what decoding at once gives, files of its layout load, others are named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from pipeline.build import load
from pipeline.config import load_config
from pipeline.preflight import preflight
from tests.close import assert_close
from tests.miniature import HEIGHT, WIDTH, latentmem, make_family
from utils.errors import UserError
from utils.tensors import shapes_of
from wan.params import LatentFormat
from wan.taehv import TAEHV, MemBlock, StreamingTAEHV, load_taehv

GOLDENS = Path(__file__).parent / "goldens"
SIZES = 16, (24, 16, 8, 8), (1, 2, 2)
KINDS = {"taew2_1": SIZES, "taew2_2": (48, *SIZES[1:], 2)}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write("taew2_1", tmp_path_factory.mktemp("tiny"))


def write(kind: str, folder: Path) -> Path:
    """A file of the published layout at small size, an encoder beside the decoder."""
    path = folder / "decoder.pth"  # its shapes tell its kind, not its name
    torch.manual_seed(0)
    tensors = TAEHV(*KINDS[kind]).state_dict() | {"encoder.0.weight": torch.zeros(64, 3, 3, 3)}
    tensors["decoder.22.weight"].mul_(10)  # random weights make a grey picture
    tensors["decoder.22.bias"].fill_(0.5)
    torch.save(tensors, path)
    return path


def decoded_at_once(vae: TAEHV, latents: torch.Tensor) -> torch.Tensor:
    """All frames of one video [F, C, H, W] through each layer together, as the family's authors write it."""
    x = latents
    for layer in vae.decoder:
        x = layer(x, F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]) if isinstance(layer, MemBlock) else layer(x)
    x = F.pixel_shuffle(x, vae.patch_size)
    return x[3:].clamp(0, 1) * 2 - 1


@pytest.mark.parametrize("kind, form", [("taew2_1", LatentFormat()), ("taew2_2", LatentFormat(48, 16, 4))])
@pytest.mark.parametrize("parts", [[7], [1] * 7, [3, 3, 1], [1, 6]], ids=str)
def test_streamed_frames_are_those_of_decoding_at_once(kind, form, parts, tmp_path):
    vae = load_taehv(write(kind, tmp_path))
    assert vae.format == form
    latents = torch.randn(2, 7, form.channels, 4, 6, generator=torch.Generator().manual_seed(1)) * 3
    decoder = StreamingTAEHV(vae)
    streamed = torch.cat([decoder(part) for part in latents.split(parts, dim=1)], dim=1)
    assert streamed.shape == (2, form.pixel_frames(7), 3, 4 * form.spatial, 6 * form.spatial)
    assert streamed.std() > 0.1
    assert torch.equal(streamed, StreamingTAEHV(vae)(latents))
    for sample in range(2):
        # some 40 convolutions, sums of up to 9 x 48 numbers (50 roundings), which batches of another shape may take
        # in another order
        assert_close(streamed[sample], decoded_at_once(vae, latents[sample]), roundings=40 * 50)


def test_names_and_shapes_are_those_of_the_published_layouts():
    with torch.device("meta"):
        shapes = shapes_of(TAEHV())
    for key, shape in {
        "decoder.1.weight": (256, 16, 3, 3),
        "decoder.3.conv.0.weight": (256, 512, 3, 3),
        "decoder.7.conv.weight": (256, 256, 1, 1),
        "decoder.8.weight": (128, 256, 3, 3),
        "decoder.11.conv.4.bias": (128,),
        "decoder.13.conv.weight": (256, 128, 1, 1),
        "decoder.14.weight": (64, 128, 3, 3),
        "decoder.17.conv.2.weight": (64, 64, 3, 3),
        "decoder.19.conv.weight": (128, 64, 1, 1),
        "decoder.20.weight": (64, 64, 3, 3),
        "decoder.22.bias": (3,),
    }.items():
        assert shapes[key] == shape
    assert len(shapes) == 2 + 9 * 6 + 3 * 2 + 2
    with torch.device("meta"):
        larger = shapes_of(TAEHV(48, patch_size=2))
    assert larger["decoder.1.weight"] == (256, 48, 3, 3) and larger["decoder.22.weight"] == (12, 64, 3, 3)
    assert larger.keys() == shapes.keys()


def test_a_file_of_safetensors_gives_the_same_decoder(file, tmp_path):
    one = load_taehv(file)
    save_file(one.state_dict(), tmp_path / "a.safetensors")
    two = load_taehv(tmp_path / "a.safetensors").state_dict()
    assert (one.widths, one.growth) == SIZES[1:]
    assert all(torch.equal(value, two[key]) for key, value in one.state_dict().items())


def changed(path: Path, **tensors: torch.Tensor | None) -> Path:
    state = TAEHV(*SIZES).state_dict() | {key.replace("__", "."): value for key, value in tensors.items()}
    torch.save({key: value for key, value in state.items() if value is not None}, path)
    return path


FAULTS = {
    "missing": (lambda at: at / "no.pth", ["does not exist", "madebyollin/taehv", "vae: full"]),
    "full VAE": (lambda at: GOLDENS / "vae_weights.safetensors", ["decoder.1.weight is missing", "no tiny"]),
    "a key less": (lambda at: changed(at / "a.pth", decoder__9__conv__2__bias=None), ["decoder.9.conv.2.bias is"]),
    "another shape": (
        lambda at: changed(at / "a.pth", decoder__22__weight=torch.zeros(5, 8, 3, 3)),
        ["decoder.22.weight is [5, 8, 3, 3] where the model has [3, 8, 3, 3]"],
    ),
    "fewer frames": (
        lambda at: changed(at / "a.pth", decoder__19__conv__weight=torch.zeros(8, 8, 1, 1)),
        ["makes 2 frames of a latent frame"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_serve_is_named_with_its_cause(fault, tmp_path):
    write, words = FAULTS[fault]
    with pytest.raises(UserError) as error:
        load_taehv(write(tmp_path))
    message = str(error.value)
    assert "\n" not in message and "tiny_vae_ckpt" in message and all(word in message for word in words), message


def test_a_run_decodes_with_it_and_checks_its_file(file, tmp_path):
    settings = make_family(tmp_path) | {"model_kwargs": latentmem(tmp_path), "num_output_frames": 6, "vae": "tiny"}
    with pytest.raises(UserError, match=r"tiny_vae_ckpt names no file"):
        load_config(overrides=settings)
    with pytest.raises(UserError, match=r"tiny_vae_ckpt file no\.pth does not exist; get taew2_1"):
        preflight(load_config(overrides=settings | {"tiny_vae_ckpt": "no.pth"}))
    other = tmp_path / "other.pth"
    torch.save(TAEHV(12, *SIZES[1:]).state_dict(), other)
    with pytest.raises(UserError, match=r"other\.pth makes latents of 12 channels"):
        preflight(load_config(overrides=settings | {"tiny_vae_ckpt": str(other)}))
    (tmp_path / "wan_models" / "miniature" / "vae" / "config.json").unlink()  # the full one is not needed
    video = load(load_config(overrides=settings | {"tiny_vae_ckpt": str(file)})).video("a red house")
    assert video.shape == (1 + 4 * 5, HEIGHT, WIDTH, 3) and video.std() > 1
