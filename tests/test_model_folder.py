"""A model folder whose small files are broken is refused in one line; whole weights are not blamed."""

from pathlib import Path

import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from tests.miniature import WORDS, make_tokenizer
from utils.errors import UserError
from wan.text_encoder import TextEncoder, find_text_encoder, load_tokenizer, read_umt5


@pytest.fixture
def folder(tmp_path) -> Path:
    config = UMT5Config(vocab_size=len(WORDS), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3)
    UMT5EncoderModel(config).save_pretrained(tmp_path / "text_encoder")
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path


BROKEN = [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe\x00"]


@pytest.mark.parametrize("content", [*BROKEN, None, "half", "{}"], ids=str)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_one_line(name, content, folder):
    path = folder / "tokenizer" / name
    if content is None:
        path.unlink()
    elif content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"^tokenizer .*tokenizer cannot be read \(.+\); 'bash download\.sh'") as error:
        load_tokenizer(folder / "tokenizer")
    assert "\n" not in str(error.value)


SIZES = [b'{"d_model": "x"}', b'{"d_model": -3}', b'{"num_layers": 1e9}', b'{"feed_forward_proj": "x"}']


@pytest.mark.parametrize("content", [*BROKEN, *SIZES], ids=str)
def test_a_broken_text_encoders_config_is_one_line(content, folder):
    (folder / "text_encoder" / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="text_encoder") as error:
        read_umt5(find_text_encoder(folder)[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lost", ["blocks.0.pos_embedding.embedding.weight", "norm.weight", "token_embedding.weight"])
def test_an_original_file_that_lacks_a_weight_is_one_line(lost, folder):
    tensors = {
        "token_embedding.weight": torch.zeros(9, 4),
        "norm.weight": torch.zeros(4),
        "blocks.0.pos_embedding.embedding.weight": torch.zeros(32, 2),
        "blocks.0.attn.q.weight": torch.zeros(8, 4),
        "blocks.0.ffn.fc1.weight": torch.zeros(6, 4),
        "else": torch.zeros(1),
    }
    del tensors[lost]
    torch.save(tensors, folder / "t5.pth")
    with pytest.raises(UserError, match=r"text encoder .*t5\.pth (holds no UMT5|does not fit)"):
        read_umt5(folder / "t5.pth")


def test_a_tokenizer_of_another_model_is_said_to_be_one(folder):
    config = UMT5Config(vocab_size=5, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(UserError, match=rf"has {len(WORDS)} words where text encoder .* knows 5; they belong to"):
        TextEncoder(*find_text_encoder(folder), 16)


def test_whole_files_encode(folder):
    encoder = TextEncoder(*find_text_encoder(folder), 16)
    assert encoder(["a red house"]).shape == (1, 16, 24)
