"""Turns prompts into the embeddings that condition a generation, and caches them on disk."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.prompts import Prompt
from utils.cache import write_cached
from wan.text_encoder import clean, load_tokenizer, tokens_cut

Encoder = Callable[[Sequence[str]], torch.Tensor]  # prompts -> [len(prompts), text_len, text_dim]
Embed = Callable[[Sequence[str]], dict[str, torch.Tensor]]  # prompts -> each one's embedding [text_len, text_dim]
NAMED = 5  # prompts in the note of those that are cut
SAMPLED = 1 << 20  # bytes of a file's head and tail that stand for its content


class TextCache:
    """Embeddings on disk, one file each, by the prompt as the encoder sees it and by the encoder.

    Args:
        folder: made when needed; several runs may share it.
        encoder: what tells this encoder from any other, from `fingerprint` and its settings.
    """

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder, self.encoder = folder, encoder

    def path(self, prompt: str) -> Path:
        digest = hashlib.sha256(f"{self.encoder}\n{clean(prompt)}".encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def get(self, prompt: str) -> torch.Tensor | None:
        """[text_len, text_dim], or None where it is not cached or cannot be read."""
        try:
            content = load_file(self.path(prompt))
            x = content["embedding"]
            rows = content["rows"].item()
        except (OSError, SafetensorError, KeyError, RuntimeError):
            return None
        if x.ndim != 2 or rows < len(x):
            return None
        return torch.cat([x, x.new_zeros(rows - len(x), x.shape[1])])

    def put(self, prompt: str, x: torch.Tensor) -> None:
        """Keep an embedding [text_len, text_dim], but for the zeros beyond the prompt's length.

        Where the folder cannot be written, one warning says so.
        """
        filled = x.any(dim=1).nonzero()
        rows = int(filled[-1]) + 1 if len(filled) else 0
        content = {"embedding": x[:rows].clone(), "rows": torch.tensor([len(x)])}
        write_cached(self.path(prompt), lambda temporary: save_file(content, temporary))


def encode_prompts(
    load_encoder: Callable[[], Encoder], prompts: Sequence[str], cache: TextCache | None = None, batch_size: int = 8
) -> dict[str, torch.Tensor]:
    """Each distinct prompt's embedding [text_len, text_dim], on the CPU.

    Args:
        load_encoder: called once, and only if a prompt is not in the cache.
    """
    distinct = list(dict.fromkeys(prompts))
    found = {prompt: cache.get(prompt) for prompt in distinct} if cache else {}
    embeddings = {prompt: x for prompt, x in found.items() if x is not None}
    missing = [prompt for prompt in distinct if prompt not in embeddings]
    if missing:
        encoder = load_encoder()
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for prompt, x in zip(batch, encoder(batch).cpu(), strict=True):
                embeddings[prompt] = x
                if cache:
                    cache.put(prompt, x)
    return embeddings


def note_of_cuts(prompts: Sequence[Prompt], tokenizer: Path, text_len: int) -> str | None:
    """Which prompts are longer than the text encoder reads, in one line; None if none is.

    Args:
        tokenizer: its folder.
        text_len: tokens that a prompt is cut to.
    """
    reader = load_tokenizer(tokenizer)
    cuts = []
    for prompt in prompts:
        lost = tokens_cut(reader, prompt.text, text_len)
        if lost:
            cuts.append(f"prompt {prompt.index} loses its last {lost} {'token' if lost == 1 else 'tokens'}")
    if not cuts:
        return None
    more = f", and {len(cuts) - NAMED} more" if len(cuts) > NAMED else ""
    return f"note: the text encoder reads {text_len} tokens of a prompt: {', '.join(cuts[:NAMED])}{more}"


def fingerprint(paths: Iterable[Path]) -> str:
    """Tells files, or folders of files, from others without reading gigabytes: sizes, times, heads and tails."""
    digest = hashlib.sha256()
    for path in paths:
        for part in [path] if path.is_file() else sorted(part for part in path.iterdir() if part.is_file()):
            stat = part.stat()
            digest.update(f"{part.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
            with open(part, "rb") as file:
                digest.update(file.read(SAMPLED))
                file.seek(max(stat.st_size - SAMPLED, 0))
                digest.update(file.read(SAMPLED))
    return digest.hexdigest()
