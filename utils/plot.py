"""Plots for a person to look at."""

from collections.abc import Sequence
from pathlib import Path

from utils.files import atomic


def plot_memory(path: str | Path, blocks: Sequence[dict], frames: int, title: str) -> None:
    """Draw what each block retrieved: query frame against retrieved frame, coloured by similarity.

    Args:
        blocks: the run's record, a mapping a block with `start`, `retrieved` and `similarities`.
        frames: length of the video in latent frames.
        title: the prompt.
    """
    import matplotlib  # slow to import, needed only here

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points = [(b["start"], f, s) for b in blocks for f, s in zip(b["retrieved"], b["similarities"], strict=True)]
    figure, axes = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    axes.plot([0, frames], [0, frames], color="0.6", linewidth=1, label="the present")
    if points:
        query, retrieved, similarity = zip(*points, strict=True)
        dots = axes.scatter(query, retrieved, c=similarity, s=14, cmap="viridis")
        figure.colorbar(dots, label="cosine similarity to the query")
    else:
        axes.text(0.5, 0.5, "nothing was retrieved", transform=axes.transAxes, ha="center", color="0.4")
    axes.set(xlim=(0, frames), ylim=(0, frames), aspect="equal")
    axes.set(xlabel="block's first latent frame", ylabel="retrieved latent frame")
    axes.set_title(title if len(title) <= 80 else title[:79] + "…", fontsize=9, wrap=True)
    axes.legend(loc="upper left", frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
