"""A whole model family at miniature size, random weights, in the layout that users have on disk."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from ae.model import LatentAE, LatentAEParams
from wan.model import CausalWanModel
from wan.params import WanParams, latent_format

PARAMS = WanParams(dim=48, ffn_dim=96, num_heads=4, num_layers=2, freq_dim=32, text_dim=24, text_len=16)
HEIGHT, WIDTH = 32, 48  # pixels; 4 x 6 latents, 6 tokens a frame
# One after another in a forward, as tests/close.py counts them: a layer has seven products of 48 or 96 terms (6 or
# 12 each), five norms over 48 (6 to 14), two softmaxes over up to 72 keys and the sums they weigh (20), and some 40
# operations on single numbers, 150 in all. Earlier forwards hardly add to it: re-noising and attention damp them.
ROUNDINGS = 300
WORDS = ["</s>", "<pad>", "<unk>", "a", "red", "blue", "house", "tree", "at", "night"]


@dataclass(frozen=True)
class Family:
    """What a family is made of: the kind of one of Wan's, at miniature size.

    Attributes:
        params: the transformer's sizes.
        vae: the configuration of its AutoencoderKLWan.
        height, width: of its videos, in pixels.
        model_type: what its `config.json` calls it.
    """

    params: WanParams
    vae: Mapping
    height: int
    width: int
    model_type: str = "t2v"


WAN_2_1 = Family(PARAMS, {"base_dim": 4, "num_res_blocks": 1, "dim_mult": [1, 2, 2, 2]}, HEIGHT, WIDTH)


def make_family(root: Path, seed: int = 0, family: Family = WAN_2_1) -> dict:
    """Write weights, prompts and return the settings of a native run that uses them."""
    torch.manual_seed(seed)
    params = family.params
    folder = root / "wan_models" / "miniature"
    folder.mkdir(parents=True)
    (root / "checkpoints").mkdir()
    (folder / "config.json").write_text(json.dumps(params.to_dict() | {"model_type": family.model_type}))
    model = randomised(CausalWanModel(**params.to_dict()))
    save_file(model.state_dict(), root / "checkpoints" / "miniature.safetensors")
    vae = AutoencoderKLWan(**family.vae)
    vae.save_pretrained(folder / "vae")
    config = UMT5Config(vocab_size=len(WORDS), d_model=params.text_dim, d_kv=8, d_ff=32, num_layers=1, num_heads=3)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    channels, height, width = latent_format(vae.config).shape(family.height, family.width)
    sizes = LatentAEParams(in_channels=channels, spatial_h=height, spatial_w=width, latent_dim=8, hidden_dims=(16,))
    encoder = {"model": LatentAE(sizes).state_dict(), "config": asdict(sizes)}
    torch.save(encoder, root / "checkpoints" / "miniature_ae.pt")
    (root / "prompts.txt").write_text("a red house\n\na blue tree at night\na red tree\n")
    return {
        "model_name": "miniature",
        "model_root": str(root / "wan_models"),
        "generator_ckpt": str(root / "checkpoints" / "miniature.safetensors"),
        "data_path": str(root / "prompts.txt"),
        "output_folder": str(root / "videos"),
        "text_cache": str(root / "text_cache"),
        "num_output_frames": 24,
        "height": family.height,
        "width": family.width,
        "denoising_step_list": [1000, 500],
    }


def latentmem(root: Path, method: str = "avg_pool", **sizes: int) -> dict:
    """`model_kwargs` of a latentmem run small enough to retrieve within 24 frames."""
    kwargs = {"local_attn_size": 8, "sink_size": 1, "memory_size": 3, "recent_exclude": 1} | sizes
    ae = {"ae_ckpt": str(root / "checkpoints" / "miniature_ae.pt")} if method == "ae" else {}
    return {"use_latentmem": True, "compression_method": method, **kwargs, **ae}


def write_config(path: Path, settings: dict) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Random values for every parameter, also those that start as zero."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.3 if weight.dim() > 1 else 0.1)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
