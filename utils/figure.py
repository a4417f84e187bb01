"""Matplotlib figures without pyplot: no backend is chosen, and no figure stays behind in a global list."""

from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of `width` x `height` inches that is drawn in memory; `figure.subplots()` makes its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, needed only here
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: str | Path, dpi: int = 110) -> None:
    """Write the figure; the file appears whole, or not at all.

    Titles, labels, legends and texts are shown letter by letter. Matplotlib would read what stands between two
    dollar signs as a formula, and a prompt with `$$` in it would end in an error.

    Args:
        path: its suffix names the format, for instance `.png`.

    Raises:
        UserError: the file cannot be written.
    """
    _show_dollars(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def tick_label(text: str) -> str:
    """`text` for use as a tick's label. Ticks are made anew at each drawing, so `save` cannot prepare them."""
    return text.replace("$", r"\$")


def _show_dollars(figure: "Figure") -> None:
    """Turn formulas off in every text but the numbers at the ticks, which use them for powers of ten."""
    from matplotlib.text import Text

    at_ticks = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            at_ticks.update(axis.findobj(Text))
            axis.label.set_parse_math(False)
    for text in figure.findobj(Text):
        if text not in at_ticks:
            text.set_parse_math(False)
