"""The UMT5 text encoder (transformers' UMT5EncoderModel) and the way Wan cleans and pads prompts."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

import ftfy
import torch
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from utils.errors import UserError
from utils.tensors import DOWNLOAD, check_fit, fill, read_tensors, shapes_of

ORIGINAL_FILES = ("models_t5_umt5-xxl-enc-bf16.pth", "models_t5_umt5-xxl-enc-bf16.safetensors")
TOKENIZER_FOLDERS = ("tokenizer", "google/umt5-xxl")

# Wan's names inside block i -> transformers' names inside encoder.block.i
BLOCK_NAMES = {
    "norm1.": "layer.0.layer_norm.",
    "attn.": "layer.0.SelfAttention.",
    "pos_embedding.embedding.": "layer.0.SelfAttention.relative_attention_bias.",
    "norm2.": "layer.1.layer_norm.",
    "ffn.gate.0.": "layer.1.DenseReluDense.wi_0.",
    "ffn.fc1.": "layer.1.DenseReluDense.wi_1.",
    "ffn.fc2.": "layer.1.DenseReluDense.wo.",
}


def find_text_encoder(folder: Path) -> tuple[Path, Path]:
    """(encoder, tokenizer) inside a model folder: transformers' `text_encoder/`, else Wan's original file."""
    encoders = [folder / "text_encoder" / "config.json", *(folder / name for name in ORIGINAL_FILES)]
    encoder = next((path for path in encoders if path.is_file()), None)
    if encoder is None:
        raise UserError(
            f"no text encoder in {folder}: none of text_encoder/, {', '.join(ORIGINAL_FILES)} is there; {DOWNLOAD}"
        )
    tokenizer = next((folder / name for name in TOKENIZER_FOLDERS if (folder / name).is_dir()), None)
    if tokenizer is None:
        raise UserError(f"no tokenizer in {folder}: none of {', '.join(TOKENIZER_FOLDERS)} is there; {DOWNLOAD}")
    return (encoder.parent if encoder.name == "config.json" else encoder), tokenizer


class TextEncoder:
    """Turns prompts into embeddings.

    Args:
        encoder: transformers folder, or Wan's original file.
        tokenizer: tokenizer folder.
        text_len: tokens that a prompt is padded and cut to.
    """

    def __init__(
        self,
        encoder: Path,
        tokenizer: Path,
        text_len: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.text_len = text_len
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        self.model = load_umt5(encoder, device, dtype)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts to embeddings [len(prompts), text_len, text_dim], zero beyond each prompt's length."""
        tokens = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.text_len,
            return_tensors="pt",
        ).to(self.model.device)
        x = self.model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return x * tokens.attention_mask.unsqueeze(-1).to(x)


def clean(prompt: str) -> str:
    """Mend encoding errors, resolve HTML entities (twice, as some are escaped twice), fold whitespace."""
    prompt = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", prompt).strip()


def load_umt5(path: Path, device: torch.device | str, dtype: torch.dtype) -> UMT5EncoderModel:
    """A frozen UMT5 encoder; see `read_umt5`."""
    config, tensors = read_umt5(path)
    model = _meta_umt5(config)
    fill(model, tensors, f"text encoder {path}", device, dtype)
    return model


def read_umt5(path: Path) -> tuple[UMT5Config, dict[str, torch.Tensor]]:
    """transformers' configuration and the mapped tensors under its names, found to fit each other.

    Args:
        path: a transformers folder, or Wan's original file.
    """
    tensors = dict(read_tensors(path, "text encoder"))
    if path.is_dir():
        config = UMT5Config.from_pretrained(path, local_files_only=True)
        shared = tensors.get("shared.weight", tensors.get("encoder.embed_tokens.weight"))
        if shared is not None:  # one tensor of two names, of which a file may hold either
            tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"] = shared
    else:
        if "token_embedding.weight" not in tensors:
            raise UserError(f"text encoder {path} holds no UMT5 encoder; delete it and get it again")
        config, tensors = umt5_config(tensors), umt5_tensors(tensors)
    check_fit(shapes_of(_meta_umt5(config)), tensors, f"text encoder {path}")
    return config, tensors


def _meta_umt5(config: UMT5Config) -> UMT5EncoderModel:
    with torch.device("meta"):
        return UMT5EncoderModel(config)


def umt5_config(original: dict[str, torch.Tensor]) -> UMT5Config:
    """transformers' configuration for an encoder under Wan's names, from its shapes."""
    vocab, dim = original["token_embedding.weight"].shape
    buckets, heads = original["blocks.0.pos_embedding.embedding.weight"].shape
    return UMT5Config(
        vocab_size=vocab,
        d_model=dim,
        d_kv=original["blocks.0.attn.q.weight"].shape[0] // heads,
        d_ff=original["blocks.0.ffn.fc1.weight"].shape[0],
        num_layers=1 + max(int(key.split(".")[1]) for key in original if key.startswith("blocks.")),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
    )


def umt5_tensors(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An encoder's tensors from Wan's names to transformers' names."""
    tensors = {}
    for key, value in original.items():
        if key == "token_embedding.weight":
            tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"] = value
        elif key == "norm.weight":
            tensors["encoder.final_layer_norm.weight"] = value
        else:
            _, block, name = key.split(".", 2)
            ours = next((part for part in BLOCK_NAMES if name.startswith(part)), None)
            tensors[f"encoder.block.{block}.{name.replace(ours, BLOCK_NAMES[ours], 1)}" if ours else key] = value
    return tensors
