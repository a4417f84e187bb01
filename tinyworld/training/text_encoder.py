"""The miniature text encoder: a word-level tokenizer and a UMT5 encoder trained with the backbone."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from tinyworld.world.captions import words

SPECIAL = ("<pad>", "</s>", "<unk>")


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token for each word and sign of the grammar, `</s>` at the end."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def build_encoder(dim: int, layers: int, vocabulary: int) -> UMT5EncoderModel:
    """An untrained UMT5 encoder with heads of 16 channels."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=dim,
            d_kv=16,
            d_ff=2 * dim,
            num_layers=layers,
            num_heads=dim // 16,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


class TextEncoder(nn.Module):
    """Captions to embeddings [B, text_len, text_dim], zero beyond each caption's length."""

    def __init__(self, dim: int, layers: int, text_len: int) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer(text_len)
        self.text_len = text_len
        self.encoder = build_encoder(dim, layers, len(self.tokenizer))

    def forward(self, captions: Sequence[str]) -> torch.Tensor:
        batch = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.text_len, return_tensors="pt"
        ).to(self.encoder.device)
        mask = batch.attention_mask
        hidden = self.encoder(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
        return hidden * mask.unsqueeze(-1)

    def save(self, folder: Path) -> None:
        """Write `text_encoder/` and `tokenizer/`, as transformers loads them."""
        self.encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
