"""The models in memory; takes of other methods and settings share them where the weights are the same."""

from typing import Any

import torch

from pipeline.build import assemble, embed, load
from pipeline.pipeline import Pipeline
from pipeline.preflight import Preflight


class Models:
    """One set of models, loaded when it is first needed."""

    def __init__(self) -> None:
        self.loaded: Pipeline | None = None
        self.made_of: tuple[Any, ...] = ()

    def pipeline(self, found: Preflight) -> Pipeline:
        """A pipeline for a run; its models are those in memory where they are the run's."""
        wanted = _made_of(found)
        if self.loaded is None or self.made_of != wanted:
            self.loaded = None  # the memory of the former ones is free before the next ones are loaded
            self.loaded = load(found)
            self.made_of = wanted
        if found.device.type == "cuda":
            torch.cuda.set_device(found.device)  # a thread has a device of its own
        kept = self.loaded
        pipeline = assemble(found.config, kept.model, kept.format, kept.device, kept.vae)
        pipeline.bank_bytes = found.bank_bytes
        pipeline.embed = lambda prompts: embed(found, prompts)
        pipeline.embeddings = kept.embeddings  # prompts that were encoded once stay so
        return pipeline


def _made_of(found: Preflight) -> tuple[Any, ...]:
    """What decides which models are loaded, and how."""
    config = found.config
    files = []
    for role, path in found.files.items():
        if role not in config.descriptor_files():
            files.append((role, str(path)))
    how = (config.use_ema, config.adapter, config.weights, config.memory, config.compile, config.attention_backend)
    return (found.device, found.text_device, found.dtype, *files, *how)
