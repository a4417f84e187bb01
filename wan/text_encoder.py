"""The UMT5 text encoder (transformers' UMT5EncoderModel) and the way Wan cleans and pads prompts."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

import ftfy
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from utils.errors import DOWNLOAD, UserError, first_line, muted
from utils.tensors import check_fit, fill, read_tensors, shapes_of
from wan.params import read_config

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
    return _find_encoder(folder), _find_tokenizer(folder)


def _find_encoder(folder: Path) -> Path:
    if (folder / "text_encoder" / "config.json").is_file():
        return folder / "text_encoder"
    for name in ORIGINAL_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"no text encoder in {folder}: none of text_encoder/, {', '.join(ORIGINAL_FILES)} is there; {DOWNLOAD}"
    )


def _find_tokenizer(folder: Path) -> Path:
    for name in TOKENIZER_FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    raise UserError(f"no tokenizer in {folder}: none of {', '.join(TOKENIZER_FOLDERS)} is there; {DOWNLOAD}")


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
        self.device = torch.device(device)  # where it computes
        self.tokenizer = load_tokenizer(tokenizer)
        self.model = load_umt5(encoder, device, dtype)
        if len(self.tokenizer) > self.model.config.vocab_size:
            raise UserError(
                f"tokenizer {tokenizer} has {len(self.tokenizer)} words where text encoder {encoder} knows "
                f"{self.model.config.vocab_size}; they belong to different models: get both again"
            )

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts to embeddings [len(prompts), text_len, text_dim], zero beyond each prompt's length."""
        tokens = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.text_len,
            return_tensors="pt",
        )
        table = self.model.get_input_embeddings()
        embeds = table(tokens.input_ids.to(table.weight.device)).to(self.device)
        mask = tokens.attention_mask.to(self.device)
        x = self.model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        return x * mask.unsqueeze(-1).to(x)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, found to work.

    Raises:
        UserError: a file of it is missing or broken.
    """
    try:
        with muted():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            tokenizer(["a"], padding="max_length", truncation=True, max_length=2)
    except BaseException as error:  # of many kinds: what the readers of its files say to a broken one
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust
            raise
        raise UserError(f"tokenizer {folder} cannot be read ({first_line(error)}); {DOWNLOAD}") from error
    return tokenizer


def tokens_cut(tokenizer: PreTrainedTokenizerBase, prompt: str, text_len: int) -> int:
    """How many of a prompt's last tokens do not fit into `text_len`, the mark of its end included."""
    tokens = tokenizer(clean(prompt), verbose=False).input_ids
    return max(len(tokens) - text_len, 0)


def clean(prompt: str) -> str:
    """Mend encoding errors, resolve HTML entities (twice, as some are escaped twice), fold whitespace."""
    prompt = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", prompt).strip()


def load_umt5(path: Path, device: torch.device | str, dtype: torch.dtype) -> UMT5EncoderModel:
    """A frozen UMT5 encoder; see `read_umt5`."""
    config, tensors = read_umt5(path)
    model = _meta_umt5(config, f"text encoder {path}")
    fill(model, tensors, f"text encoder {path}", device, dtype)
    return model


def read_umt5(path: Path) -> tuple[UMT5Config, dict[str, torch.Tensor]]:
    """transformers' configuration and the mapped tensors under its names, found to fit each other.

    Args:
        path: a transformers folder, or Wan's original file.
    """
    source = f"text encoder {path}"
    tensors = dict(read_tensors(path, "text encoder"))
    if path.is_dir():
        config = _config_in(path)
        shared = tensors.get("shared.weight", tensors.get("encoder.embed_tokens.weight"))
        if shared is not None:  # one tensor of two names, of which a file may hold either
            tensors["shared.weight"] = shared
            tensors["encoder.embed_tokens.weight"] = shared
    else:
        try:
            config = umt5_config(tensors)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{source} holds no UMT5 encoder; delete it and get it again") from error
        tensors = umt5_tensors(tensors)
    check_fit(shapes_of(_meta_umt5(config, source)), tensors, source)
    return config, tensors


def _config_in(folder: Path) -> UMT5Config:
    try:
        return UMT5Config.from_dict(read_config(folder))
    except UserError:
        raise
    except Exception as error:  # whatever transformers says to a value that cannot be
        raise UserError(f"{folder / 'config.json'} describes no UMT5 encoder ({first_line(error)})") from error


def _meta_umt5(config: UMT5Config, source: str) -> UMT5EncoderModel:
    try:
        with torch.device("meta"):
            return UMT5EncoderModel(config)
    except Exception as error:  # whatever layers say to sizes that cannot be
        raise UserError(f"{source} describes no UMT5 encoder ({first_line(error)}); get it again") from error


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
            tensors["shared.weight"] = value
            tensors["encoder.embed_tokens.weight"] = value
        elif key == "norm.weight":
            tensors["encoder.final_layer_norm.weight"] = value
        else:
            tensors[_umt5_name(key)] = value
    return tensors


def _umt5_name(key: str) -> str:
    """transformers' name for a weight of a block; a foreign key stays as it is."""
    parts = key.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks":
        _, block, name = parts
        for theirs, ours in BLOCK_NAMES.items():
            if name.startswith(theirs):
                return f"encoder.block.{block}.{name.replace(theirs, ours, 1)}"
    return key
