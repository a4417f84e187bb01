"""What is known of a batch before it is made: when its prompts change, and which of its blocks are given."""

from collections.abc import Sequence

import torch

from pipeline.autoencoders import VAE
from pipeline.given import Given, Reader
from pipeline.samples import Sample


class Script:
    """The common course of a batch of samples that are alike in layout.

    Args:
        made: blocks that an earlier, interrupted run of the same batch left, one for each sample; or none.
        vae: encodes pictures and clips.
    """

    def __init__(self, samples: Sequence[Sample], made: Sequence[Given] = (), vae: VAE | None = None) -> None:
        self.samples, self.vae = list(samples), vae
        self.sources: list[tuple[Given, ...]] = []  # of each given span, one a sample; the first that has a frame gives
        if made:
            self.sources.append(tuple(made))
        self.sources += zip(*(sample.given for sample in samples), strict=True)
        self.readers: dict[int, list[Reader]] = {}

    def switch(self, frame: int) -> tuple[list[str], str] | None:
        """The new prompts and the rule, where prompts change at a block's first frame."""
        for segments in zip(*(sample.segments for sample in self.samples), strict=True):
            first = segments[0]
            if first.start == frame and first.how is not None:
                return [segment.prompt for segment in segments], first.how
        return None

    def given(self, frames: range) -> torch.Tensor | None:
        """A block's latents [B, F, C, H, W] where they are given, else None."""
        for number, source in enumerate(self.sources):
            span = source[0].frames
            if frames.start in span and frames[-1] in span:
                if number not in self.readers:
                    self.readers[number] = [given.open(self.vae) for given in source]
                return torch.stack([read(frames) for read in self.readers[number]])
        return None
