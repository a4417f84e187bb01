"""A table of what a block of Wan2.1-T2V-1.3B at 480x832 does on a GPU, counted on one that is not there."""

from benchmarks.fake_gpu.engine import LATENTMEM, Case, watch
from benchmarks.fake_gpu.tally import Card
from utils.table import markdown
from wan.params import WanParams

LOW = {"memory": "low"}
# Row -> settings, and the fewest layers from which on each further one adds the same.
# Row -> settings.
ROWS = {
    "native": {},
    "latentmem": {"model_kwargs": LATENTMEM},
    "native, memory=low": LOW,
    "latentmem, memory=low": LOW | {"model_kwargs": LATENTMEM},
}
LEAST = 4  # layers from which on each further pair adds the same
HEADER = (
    "a block", "kernels", "GB of kernels", "TFLOP", "D2H MB, compute", "beside", "H2D MB", "host waits",
    "estimated s",
)  # fmt: skip


def counted_table() -> str:
    """Markdown. Layers are alike, so that a few of them tell what all of them do."""
    card, layers = Card(), WanParams().num_layers
    rows = []
    for name, settings in ROWS.items():
        few, more = _figures(settings, LEAST), _figures(settings, LEAST + 2)
        figures = []
        for first, second in zip(few, more, strict=True):
            figures.append(first + (layers - LEAST) / 2 * (second - first))
        kernels, moved, flop, on_main, beside, to_device, waits, seconds = figures
        rows.append(
            (
                name,
                f"{kernels:,.0f}",
                f"{moved / 1e9:.0f}",
                f"{flop / 1e12:.1f}",
                f"{on_main / 1e6:.1f}",
                f"{beside / 1e6:.1f}",
                f"{to_device / 1e6:,.1f}",
                f"{waits:.1f}",
                f"{seconds:.3f}",
            )
        )
    return f"{markdown([HEADER, *rows])}\n\n{_peaks()}\n\n{_rates(card)}"


def _peaks() -> str:
    """The most memory of `memory=low`, of a short video without retrieval, by decoder."""
    layers = WanParams().num_layers
    rows = [("memory=low, a block decoded in turn", "GB at most, CUDA's context and workspaces not counted")]
    for vae in ("full", "tiny"):
        few, more = (watch(Case(LOW, layers=count, blocks=7, vae=vae)).peak for count in (LEAST, LEAST + 2))
        rows.append((f"vae={vae}", f"{(few + (layers - LEAST) / 2 * (more - few)) / 1e9:.1f}"))
    return markdown(rows)


def _rates(card: Card) -> str:
    return (
        f"Counted, not measured. Seconds are an estimate at {card.name}'s assumed rates: GEMM {card.gemm / 1e12:.0f} "
        f"and attention {card.attention / 1e12:.0f} TFLOP/s, memory {card.memory / 1e12:.1f} TB/s, bus "
        f"{card.bus / 1e9:.0f} GB/s."
    )


def _figures(settings: dict, layers: int) -> list[float]:
    """Of a block of so many layers: see the table's columns."""
    seen = watch(Case(settings, layers=layers, blocks=10, counted=3))
    tally = seen.tally
    on_main = tally.copied("D2H", "main")
    figures = [
        tally.kernels["main"],
        sum(tally.kernel_bytes.values()),
        sum(tally.flop.values()),
        on_main,
        tally.copied("D2H") - on_main,
        tally.copied("H2D"),
        sum(tally.waits.values()),
    ]
    figures.append(max(tally.seconds["main"], tally.copied("H2D") / Card().bus))
    return [figure / seen.blocks for figure in figures]
