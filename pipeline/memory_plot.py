"""A picture of which frames each block of a video retrieved."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from utils.figure import new_figure, save

LONGEST_TITLE = 80  # characters
LINE = 64


def plot_memory(path: str | Path, blocks: Sequence[dict], frames: int, title: str) -> None:
    """Draw what each block retrieved: query frame against retrieved frame, coloured by similarity.

    Args:
        blocks: the run's record, a mapping a block with `start`, `retrieved` and `similarities`.
        frames: length of the video in latent frames.
        title: the prompt.
    """
    starts = []
    retrieved = []
    similarities = []
    for block in blocks:
        starts += [block["start"]] * len(block["retrieved"])
        retrieved += block["retrieved"]
        similarities += block["similarities"]
    figure = new_figure(6.4, 5.6)
    axes = figure.subplots()
    axes.plot([0, frames], [0, frames], color="0.6", linewidth=1, label="the present")
    if retrieved:
        dots = axes.scatter(starts, retrieved, c=similarities, s=14, cmap="viridis")
        figure.colorbar(dots, label="cosine similarity to the query")
    else:
        axes.text(0.5, 0.5, "nothing was retrieved", transform=axes.transAxes, ha="center", color="0.4")
    axes.set(xlim=(0, frames), ylim=(0, frames), aspect="equal")
    axes.set(xlabel="block's first latent frame", ylabel="retrieved latent frame")
    if len(title) > LONGEST_TITLE:
        title = title[: LONGEST_TITLE - 1] + "…"
    # Not by matplotlib's wrap=True, which takes dollars for formulas.
    axes.set_title(textwrap.fill(title, LINE), fontsize=9)
    axes.legend(loc="upper left", frameon=False)
    save(figure, path)
